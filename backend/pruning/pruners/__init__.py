"""One-shot pruners, one file each, behind one contract: `prune(W, inputs, pattern, damping)`.

    magnitude, wanda, dsnot, sparsegpt, admm, alps    the algorithms
    registry                                          the `@pruner` decorator

To add one, write a file here (or a module named in SLIMSCOPE_PLUGINS) with a function decorated
`@pruner("name", needs=..., products=...)`; `SDSConfig.base` then accepts its name. Does not import
torch."""

from backend.registry import Declarations

DECLARED_PRUNERS = Declarations("pruner", __name__)
