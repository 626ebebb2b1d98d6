"""Drafter architectures, one file each, behind the contract in `registry`.

    amphista           the module of the paper; adaptation, auto_embedding: its parts
    initialization     least-squares start of an untrained drafter
    int4               packed 4-bit weights for decoding on a CPU
    registry           `Drafter` and the `@drafter` decorator

To add an architecture, write a file here, or a module named in SLIMSCOPE_PLUGINS, with a subclass
of `Drafter` decorated `@drafter("name")`; `DrafterConfig.architecture` then accepts its name.
"""
