"""Every optimizer of the known libraries through the same machine."""
