"""The commands, one a module: options and what runs. torch is imported only when a command runs."""
