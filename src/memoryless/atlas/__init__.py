"""Every optimizer of a library through the same machine: subjects -> ways -> rows -> run."""
