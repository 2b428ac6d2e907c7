"""A memory in a Hugging Face model: into it, out of it, on disk."""
