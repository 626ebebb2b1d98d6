"""Export of saved models as GGUF files, which llama.cpp and the programs built on it read.

types         the types of weights, what they can hold, which one suits a model (no torch)
architecture  names, sizes and order of rows of the models that can be written (no torch)
tokenizer     vocabulary and merges of tokenizer.json as GGUF stores them (no torch)
writing       one matrix as bytes, rounded or its codes as they are; the whole file
"""
