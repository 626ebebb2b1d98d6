"""One-shot pruners, one file each, with a common interface: `prune(W, inputs, pattern, damping)`.

    magnitude, wanda, dsnot, sparsegpt, admm, alps    algorithms
    registry                                          `@pruner` decorator

To add a pruner, write a file here (or a module listed in SLIMSCOPE_PLUGINS) with a function
decorated `@pruner("name", needs=..., products=...)`; `SDSConfig.base` then accepts its name. Does
not import torch."""

from backend.registry import Declarations

DECLARED_PRUNERS = Declarations("pruner", __name__)
