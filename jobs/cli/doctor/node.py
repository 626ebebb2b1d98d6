"""What a machine of a cluster says of itself, in a file among the artifacts:
`python -m jobs.cli.doctor.node KEY`. It loads no torch and opens no database."""

import json
import platform
import sys
from importlib.metadata import version

from backend.queue.artifacts import store_or_folder

COMPARED = ("slimscope", "torch", "transformers")  # packages


def versions() -> dict[str, str]:
    """Package -> its version on this machine."""
    return {name: version(name) for name in COMPARED}


def write(key: str) -> None:
    """Store what is known here as the file `key`."""
    told = {"host": platform.node(), "versions": versions()}
    store_or_folder().write(key, json.dumps(told).encode())


def read(key: str) -> dict[str, object] | None:
    """What a machine has stored; None if it is not there, or not yet whole."""
    try:
        return dict(json.loads(store_or_folder().read(key) or b""))
    except ValueError:
        return None


if __name__ == "__main__":
    write(sys.argv[1])
