"""Test job of the doctor on a cluster machine: writes host name and package versions to a file in
the artifact store (`python -m jobs.cli.doctor.node KEY`). Does not load torch or the database."""

import json
import platform
import sys
from importlib.metadata import version

from backend.queue.artifacts import store_or_folder

PACKAGES = ("slimscope", "torch", "transformers")  # their versions have to agree


def versions() -> dict[str, str]:
    """Return the package versions of this machine."""
    return {name: version(name) for name in PACKAGES}


def write(key: str) -> None:
    """Store host name and versions of this machine in the file `key`."""
    record = {"host": platform.node(), "versions": versions()}
    store_or_folder().write(key, json.dumps(record).encode())


def read(key: str) -> dict[str, object] | None:
    """Return the record written by a machine; None if it is missing or incomplete."""
    try:
        return dict(json.loads(store_or_folder().read(key) or b""))
    except ValueError:
        return None


if __name__ == "__main__":
    write(sys.argv[1])
