"""The model in PyTorch: encoder, heads, checkpoint import, the founding experiment's small classifier."""
