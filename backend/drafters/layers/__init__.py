"""Layers that drafter architectures are built from.

adapted            the trunk that architectures share; adaptation: the cloned layers
auto_embedding     Amphista's block; anchor_table: EAGLE's table
sequential         drafting token after token
initialization     least-squares start of an untrained drafter
native             for drafting on a CPU: 8-bit weights in compiled kernels
"""
