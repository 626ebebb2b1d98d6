"""A decoder in C++ for LLaMA-like models on a CPU, in bfloat16 or on packed integer weights.

cpp           the forward pass over the nodes of a tree, with its cache, and its products
library       its C structures and functions
model         `NativeModel`: the weights of a transformers model in its layout
"""
