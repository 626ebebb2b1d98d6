"""Export of quantised models in standard formats. Read in this order:

sizes               bytes of what will be saved (no torch)
formats             the formats and their limitations (no torch)
bit_packing         codes packed into 32-bit words
compressed_tensors  the tensors of one layer in that layout, and back; also our own, with offsets
gptq_layout         the same for GPTQ, and reading of AWQ
writing             write a model folder: weights, config, tokenizer, model card
reading             read and check such a folder: as codes, or as a model on packed weights
"""
