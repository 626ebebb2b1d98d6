"""What a machine of a cluster says of itself, in a file among the artefacts:
`python -m jobs.cli.doctor.node KEY`. It loads no torch and opens no database."""

import json
import platform
import sys
from importlib.metadata import version

from backend.queue.artifacts.store import store
from backend.settings import settings

COMPARED = ("slimscope", "torch", "transformers")  # packages


def versions() -> dict[str, str]:
    """Package -> its version on this machine."""
    return {name: version(name) for name in COMPARED}


def write(key: str) -> None:
    """Store what is known here as the file `key`: in the store, or else in the folder."""
    told = {"host": platform.node(), "versions": versions()}
    content = json.dumps(told).encode()
    if kept := store():
        kept.write(key, content)
        return
    settings().artifacts.mkdir(parents=True, exist_ok=True)
    (settings().artifacts / key).write_bytes(content)


def read(key: str) -> dict[str, object] | None:
    """What a machine has stored; None if it is not there, or not yet whole."""
    try:
        kept = store()
        content = kept.read(key) if kept else (settings().artifacts / key).read_bytes()
        return dict(json.loads(content)) if content else None
    except (FileNotFoundError, ValueError):
        return None


def remove(key: str) -> None:
    """Delete the file, if it is there."""
    if kept := store():
        kept.remove(key)
    else:
        (settings().artifacts / key).unlink(missing_ok=True)


if __name__ == "__main__":
    write(sys.argv[1])
