"""Download and convert a model once: `python -m backend.models.sources.setup smollm2-135m`."""

from __future__ import annotations

import sys

from backend.errors import SlimscopeError
from backend.models.sources.materialise import materialise


def main(specs: list[str]) -> int:
    """Set up each model; return the exit status."""
    if not specs:
        print(
            f"usage: {sys.executable} -m backend.models.sources.setup smollm2-135m", file=sys.stderr
        )
        return 2
    for spec in specs:
        try:
            print(f"{spec} is ready in {materialise(spec, lambda line: print(line, flush=True))}")
        except SlimscopeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
