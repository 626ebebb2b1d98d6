"""Sparse-Dense-Sparse pruning. Read in this order:

config, pattern, layer_selection    settings; pruned layers and their patterns (no torch)
owl                                 sparsity per block by its outliers (no torch)
(methods.calibration                H = X X^T / N of each layer's inputs, shared with quantization)
masks, pruners                      which weights stay: magnitude, Wanda, SparseGPT and others
proximal_gradient                   accelerated proximal gradient, used by the next two
redense, weight_adjustment          steps 2 and 3b
block_work                          one decoder block
passes                              over all blocks: outliers, both prunings, reconstruction
(methods.block_reconstruction       the weights of a block trained together, shared with DL-QAT)
stage_store, heldout, timing        checkpoints; choice of the final stage; where time goes
pipeline                            `run_sds` and `install`: start here to use it
"""
