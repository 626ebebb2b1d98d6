"""Pruning, one-shot and Sparse-Dense-Sparse. Read in this order:

config, pattern, layer_selection    settings; pruned layers and their patterns (no torch)
owl                                 sparsity per block by its outliers (no torch)
masks, pruners                      which weights stay: magnitude, Wanda, SparseGPT and others
proximal_gradient                   accelerated proximal gradient, used by the next two
redense, weight_adjustment          steps 2 and 3b
block_work                          one decoder block
passes                              over all blocks: outliers, both prunings, reconstruction
stage_store, heldout, timing        checkpoints; choice of the final stage; where time goes
sds                                 `run_sds` and `install`: start here to use it
"""
