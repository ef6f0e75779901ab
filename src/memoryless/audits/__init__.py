"""Measured beside predicted, at one theta."""
