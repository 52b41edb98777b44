"""Steps of a model in native code: one call from tokens to logits, over the memory's own tensors (docs/kernels.md)."""
