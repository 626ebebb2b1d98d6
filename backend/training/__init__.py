"""What trains in common: the base of the training loops, optimizer state, checkpoints of stages,
block-wise reconstruction."""
