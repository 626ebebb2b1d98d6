"""Training in common: the base of the training loops, checkpoints of stages and of passes over the
blocks, block-wise reconstruction."""
