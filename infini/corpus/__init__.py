"""Text to samples and documents: sources, splits, pieces, synthetic retrieval questions."""
