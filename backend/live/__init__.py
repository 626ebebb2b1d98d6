"""Live compression, which changes the formats of layers in a fraction of a second.

dense          dense model, and tables that all of its live models share
ranks          masks of any sparsity from one byte per weight
running        model with exchangeable weights, in the native decoder or in PyTorch
model          live model: changes of formats, and refinement
measurements   loss, divergence and histograms of a live model; decoding times of formats
refinement     layers as a run would make them, after the instant preview
address        state of a live model as a short text
"""
