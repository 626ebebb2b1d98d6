"""Drafter architectures, one file each, behind the contract in `registry`.

    amphista           the module of the paper; auto_embedding: its block; and Medusa
    eagle              the sequential rival
    adapted            what both share; adaptation: the cloned layers
    initialization     least-squares start of an untrained drafter
    native             for drafting on a CPU: 8-bit weights in compiled kernels
    registry           `Drafter` and the `@drafter` decorator

To add an architecture, write a file here, or a module named in SLIMSCOPE_PLUGINS, with a subclass
of `ParallelDrafter` or `Drafter` decorated `@drafter("name")`; `DrafterConfig.architecture` then
accepts its name.
"""
