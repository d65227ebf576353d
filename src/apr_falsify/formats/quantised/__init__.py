"""Quantised checkpoints: one file a scheme, and one table of them."""
