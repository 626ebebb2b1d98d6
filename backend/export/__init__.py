"""Quantised models as other programs read them. Read in this order:

formats     which formats there are, and what each cannot hold (no torch)
packing     codes as a stream of bits in 32-bit words
layouts     one layer as the tensors of a format, and back
writing     a model folder: weights, config, tokenizer, model card
reading     such a folder again, checked; as codes, or as a model that runs on packed weights
"""
