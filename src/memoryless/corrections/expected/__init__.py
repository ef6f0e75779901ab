"""The correction averaged over the random order of mini-batches."""
