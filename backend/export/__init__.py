"""Export of quantised models in standard formats. Read in this order:

formats     the formats and their limitations (no torch)
packing     codes packed into 32-bit words
layouts     convert one layer to the tensors of a format, and back
writing     write a model folder: weights, config, tokenizer, model card
codes       the codes of a part of one matrix, read without the rest (no torch)
reading     read and check such a folder: as codes, or as a model that runs on packed weights
"""
