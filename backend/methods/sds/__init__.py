"""Sparse-Dense-Sparse pruning. Read in this order:

config, pattern     what a person may choose (no torch)
selection           which layers are pruned, and each to which pattern
allocation          OWL: how sparse each block becomes
(backend.methods.calibration: H = X X^T / N of each layer's inputs, shared with quantisation)
masks, pruners      which weights stay: magnitude, Wanda, SparseGPT; admm: another pruner
descent             accelerated proximal gradient, under both of the next two
redense, adjust     steps 2 and 3b
run, passes, work   the walks over the decoder blocks, and one block at work
stages, holdout     what is stored, and which stage is the result
pipeline            `run_sds` and `install`: start here to use it
"""
