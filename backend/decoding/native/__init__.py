"""C++ decoder for LLaMA-like models on a CPU, in bfloat16 or with packed integer weights.

blocks        decoder blocks in the layout of the kernels, and forward passes through them
cache         key-value cache in blocks that sequences share
model         `NativeModel`: a transformers model in the layout of the kernels
"""
