"""Search for a damping with which a Hessian can be factorised."""

from collections.abc import Callable
from typing import TypeVar

from backend.errors import ComputeError
from backend.linalg.decompositions import NotPositiveDefiniteError

TRIES, FACTOR = 4, 10.0

Solved = TypeVar("Solved")


def search_damping(
    solve: Callable[[float], Solved],
    damping: float,
    log: Callable[[str], None],
    name: str,
    failed: tuple[str, str],
) -> Solved:
    """`solve(damping)`; while H is not positive definite the damping is raised tenfold, up to three
    times. `log`: called with a line on every increase. `name`: of the layer. `failed`: what could
    not be done to it, such as "pruned", and what to do about it. Raises ComputeError: no damping
    helped."""
    for tried in range(TRIES):
        if tried:
            damping *= FACTOR
            log(f"{name}: Hessian not positive definite, damping raised to {damping:g}.")
        try:
            return solve(damping)
        except NotPositiveDefiniteError:
            continue
    done, do = failed
    why = f"Its Hessian is not positive definite, even with a damping of {damping:g}."
    raise ComputeError(f"{name} could not be {done}.", why, do, field="damping")
