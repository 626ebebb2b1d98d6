"""DL-QAT: low-rank updates inside the rounding, and one magnitude per group. Read in this order:

linear                     the equations, forward and backward
run                        what all stages share, and its checkpoints
passes                     passes over the decoder blocks; post-training quantizers block by block
block_training             a rival: weights and grids trained block by block
trainer                    what is minimized, the training loop, the control that is not quantized
statistics                 during training; what every stage changes
pipeline                   `DLQAT`: start here to use it; settings and plan are in the folder above
"""
