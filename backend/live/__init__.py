"""Live compression: formats of layers that change in a fraction of a second, and what that does.

dense          the dense model, and tables of it that all live models share
ranks          masks of any sparsity from a byte a weight
running        the weights as they are now, in the decoder's own layout or in PyTorch
model          the live model: changes, states, measurements
timing         how long a token takes with the layers in each format
refinement     the layers as a run would make them, behind the instant answer
address        a state as a short text
"""
