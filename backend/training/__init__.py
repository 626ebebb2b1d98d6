"""Optimizer state, block-wise reconstruction and several processes, shared by what trains."""
