"""Does a memory fade? The bound that every way to judge it shares."""

LONGEST = 1_000_000
"""A memory of a greater mean age, in steps, fades in no run."""
