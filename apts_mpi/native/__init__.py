"""Compiled kernels behind a facade, each with its torch twin; nothing is loaded before it is used."""
