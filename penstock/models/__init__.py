"""Models: the seam to transformers, loading, and what is shipped."""
