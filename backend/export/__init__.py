"""Export of quantized models in standard formats. Read in this order:

sizes               bytes of what will be saved (no torch)
formats             the formats and their limitations (no torch)
layouts             codes in 32-bit words; the tensors of one layer as compressed-tensors has them
                    (also our own, with offsets) or GPTQ, and back; reading of AWQ
writing             write a model folder: weights, config, tokenizer, model card
reading             read and check such a folder: as codes, or as a model on packed weights
"""
