"""Pruning, one-shot and Sparse-Dense-Sparse: `plan` says what is done, `sds.run_sds` does it."""
