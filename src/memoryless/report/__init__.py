"""Results as tables and pictures, one file per command."""
