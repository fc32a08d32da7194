"""From a model in PyTorch to files that the service half reads."""
