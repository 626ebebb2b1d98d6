"""The layout in figures: lines of each room, its fullest folder, and imports that close a circle.

make bench-structure ARGS="REVISION ..."     # of commits; without any, of the working tree
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOMS = ("backend", "jobs", "ui", "tests")
COUNTED = (".py", ".html")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Room:
    """A top-level folder: lines of Python and of templates, its fullest folder, and how many
    imports close a circle among siblings (None for tests, which are no package)."""

    python: int
    templates: int
    fullest: str
    files: int
    circles: int | None


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The files of a commit in a scratch folder; the working tree for an empty name."""
    if not revision:
        yield ROOT
        return
    with TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", revision], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def measure(root: Path, name: str) -> Room:
    """Counts one room below `root`."""
    files = [p for p in sorted((root / name).rglob("*")) if p.suffix in COUNTED]
    lines = Counter[str]()
    folders = Counter[str]()
    for path in files:
        lines[path.suffix] += len(path.read_text(encoding="utf-8").splitlines())
        folders[str(path.parent.relative_to(root))] += path.name != "__init__.py"
    fullest, most = folders.most_common(1)[0]
    circles = None if name == "tests" else sum(closing_imports(root, name))
    return Room(lines[".py"], lines[".html"], fullest, most, circles)


def closing_imports(root: Path, name: str) -> Iterator[int]:
    """Of each package, how many imports have to go until its children form no circle."""
    command = [sys.executable, "-c", CIRCLES, name]
    counted = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    yield from json.loads(counted.stdout)


CIRCLES = """
import grimp, json, sys
graph = grimp.build_graph(sys.argv[1], cache_dir=None)
packages = [name for name in graph.modules if len(graph.find_children(name)) > 1]
print(json.dumps([len(graph.nominate_cycle_breakers(name)) for name in packages]))
"""


def main(revisions: Sequence[str]) -> None:
    for revision in revisions or ("",):
        with checkout(revision) as root:
            rooms = {name: measure(root, name) for name in ROOMS}
        print(revision or "working tree")
        print(
            f"{'room':<10}{'Python':>8}{'templates':>11}{'circles':>9}{'files':>7}  fullest folder"
        )
        for name, room in rooms.items():
            circles = "–" if room.circles is None else room.circles
            print(
                f"{name:<9}{room.python:>7}{room.templates:>11}{circles:>9}{room.files:>7}"
                f"  {room.fullest}"
            )
        print(json.dumps({"revision": revision, **{n: asdict(r) for n, r in rooms.items()}}))


if __name__ == "__main__":
    main(sys.argv[1:])
