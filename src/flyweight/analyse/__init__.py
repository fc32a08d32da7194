"""Which parts of a model matter, as numbers and pictures, and what their bits cost on this machine."""
