"""DL-QAT: low-rank updates inside the rounding, and one magnitude per group. Read in this order:

linear            equations, forward and backward
run               model, texts, plan and checkpoints shared by all stages
passes            passes over the decoder blocks; post-training quantizers block by block
block_training    baseline: weights and grids trained block by block
trainer           losses, training loop, and the unquantized LoRA control
statistics        statistics during training, and an audit of every stage
pipeline          `DLQAT`, the entry point; config and plan are in the parent folder
"""
