"""Export of quantized models in standard formats. Read in this order:

sizes      sizes of saved models, known before a run (no torch)
formats    formats and their limitations (no torch)
layouts    codes in 32-bit words; tensors of a layer in compressed-tensors (also our variant with
           offsets) and GPTQ; reading of AWQ
writing    writes a model folder: weights, config, tokenizer, model card
reading    reads and checks such a folder, as codes or as a model
card       model cards, licenses and origin of the base model (no torch)
gguf/      GGUF files
"""
