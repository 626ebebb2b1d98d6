"""Export of saved models as GGUF files, for llama.cpp and programs based on it.

types         types of weights, their limitations, and the choice of a type (no torch)
architecture  names, sizes and row order of the supported models (no torch)
tokenizer     vocabulary and merges of tokenizer.json in GGUF (no torch)
writing       encoding of a matrix, rounded or with its codes unchanged, and of the whole file
"""
