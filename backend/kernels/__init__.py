"""Products, passes and loops over weights in C++, one library for all instruction sets.

cpp           one source of kernels, compiled once for each instruction set, and a thread pool
library       the C structures and functions, and the instruction set of this processor
rounding      loops of DL-QAT, GPTQ and range searches
speeds        products a second of the kernels and of PyTorch on this machine
"""
