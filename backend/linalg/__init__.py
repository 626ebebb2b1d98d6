"""Linear algebra of Gram matrices, with C++ kernels for bfloat16 inputs."""
