"""Text into samples and documents: sources, splits, pieces."""
