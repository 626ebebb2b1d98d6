"""DL-QAT: low-rank updates inside the rounding, and one magnitude per group. Read in this order:

linear                     the equations, forward and backward
run, passes                what all stages share; the passes over the decoder blocks
quantizer_pass, audit      post-training quantizers block by block; what every stage changes
block_training             a rival: weights and grids trained block by block
losses, trainer            what is minimised, and the training loop
lora                       the control that is not quantized
stage_store, snapshots     checkpoints; statistics during training
pipeline                   `DLQAT`: start here to use it; settings and plan are in the folder above
"""
