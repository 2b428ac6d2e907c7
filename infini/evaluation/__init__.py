"""What a model is worth on test text, and how sure that is."""
