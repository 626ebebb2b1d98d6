"""Set up models once: download and convert them."""

from __future__ import annotations

import sys

from backend.errors import SlimscopeError
from backend.models.sources.materialise import materialise


def main(specs: list[str]) -> int:
    """Set up each model; return the exit status."""
    for spec in specs:
        try:
            print(f"{spec} is ready in {materialise(spec, lambda line: print(line, flush=True))}")
        except SlimscopeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0
