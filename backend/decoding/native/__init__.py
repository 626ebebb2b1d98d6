"""A decoder in C++ for LLaMA-like models on a CPU, in bfloat16 or on packed integer weights.

blocks        decoder blocks in the layout of the kernels, and passes through them
cache         keys and values in blocks that sequences share
model         `NativeModel`: the weights of a transformers model in their layout
"""
