"""Paths of an optimizer and of the memoryless iterations and flows that stand for it."""
