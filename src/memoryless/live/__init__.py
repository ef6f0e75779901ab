"""Along a run."""
