"""DL-QAT: low-rank updates inside the rounding, and a magnitude for each group. Read in this order:

config, checks      what a person may choose, and what is refused (no torch)
(backend.quantization.grid: codes, scales and zero-points of a layer, shared with export)
spaces              the quantisation space: how scales and zero-points are found
layer               the equations, forward and backward
gptq                where training starts, and what it has to beat
run, walks          what all stages share; walks over the decoder blocks
losses, train       what is minimised, and the training loop
lora                the control that is not quantised
stages, pictures    what is stored, and what is seen while it trains
pipeline            `DLQAT`: start here to use it
"""
