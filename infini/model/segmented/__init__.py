"""Segmented retrofits: an Infini-attention layer in place of a layer, or in parallel to it."""
