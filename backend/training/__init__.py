"""Training code that several methods share: a base for training loops, checkpoints of stages, and
block reconstruction."""
