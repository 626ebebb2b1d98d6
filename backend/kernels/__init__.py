"""C++ kernels: matrix products, forward passes and elementwise loops over weights.

cpp           sources of the kernels, compiled once per instruction set, and a thread pool
library       C structures and functions, and the choice of the instruction set
rounding      elementwise kernels of DL-QAT, GPTQ and range searches
trial         trial of an instruction set in a child process
speeds        measured speeds of the kernels and of PyTorch
"""
