"""One-shot and Sparse-Dense-Sparse pruning: `plan` makes the plan, `sds.run_sds` carries it out."""
