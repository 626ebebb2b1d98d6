"""Models are built by one thread at a time.

While transformers and accelerate build one, they exchange functions of PyTorch and of their classes
(initialisation, ties, the registration of parameters, the default dtype) for all threads. Of two at
once, the second keeps what the first has exchanged, and puts that back for good."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

CONSTRUCTION = threading.RLock()


def alone(build: Callable[P, R]) -> Callable[P, R]:
    """`build`, while no other thread builds a model."""

    @wraps(build)
    def building(*args: P.args, **kwargs: P.kwargs) -> R:
        with CONSTRUCTION:
            return build(*args, **kwargs)

    return building
