"""Gram matrices, their factors and eigenvalues; products in the instructions for bfloat16."""
