"""Gram matrices; their products in C++ for bfloat16."""
