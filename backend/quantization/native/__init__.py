"""The innermost loops of quantization in C++, for float32 on a CPU; elsewhere, and where it cannot
be built, PyTorch computes the same."""
