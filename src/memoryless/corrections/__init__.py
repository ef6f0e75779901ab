"""Where a loss and an optimizer meet, at one theta: F, and what memory adds to it."""
