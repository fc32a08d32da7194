"""One training loop, its losses, and `train`."""
