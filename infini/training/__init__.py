"""Training loop, and what is trained with it."""
