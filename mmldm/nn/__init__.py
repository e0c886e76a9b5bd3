"""Blocks without a purpose of their own: attention, transformer blocks, positions, convolutions."""
