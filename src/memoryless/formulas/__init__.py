"""The correction with symbols in place of tensors."""
