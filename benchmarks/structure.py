"""The layout in figures: lines of each room, its fullest folder, imports that close a circle, form
fields, settings, and helpers called once.

make bench-structure ARGS="REVISION ..."     # of commits; without any, of the working tree
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOMS = ("backend", "jobs", "ui", "tests")
COUNTED = (".py", ".html", ".css", ".js", ".cpp", ".h")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Room:
    """A top-level folder: lines of Python and of all else (templates, styles, scripts, C++), its
    fullest folder, and how many imports close a circle among siblings (None for tests, which are
    no package)."""

    python: int
    other: int
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
    return Room(lines.pop(".py"), sum(lines.values()), fullest, most, circles)


def closing_imports(root: Path, name: str) -> Iterator[int]:
    """Of each package, how many imports have to go until its children form no circle."""
    command = [sys.executable, "-c", CIRCLES, name]
    counted = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    yield from json.loads(counted.stdout)


@dataclass(frozen=True)
class Product:
    """The product as a whole.

    Attributes:
        files: of Python.
        called_once: private functions that are named once besides their definition.
        fields, settings: of all kinds of run together, each name once; environment variables.
    """

    files: int
    called_once: int
    fields: int
    settings: int


def measure_product(root: Path) -> Product:
    """Counts what no single room tells."""
    files = [p for name in ROOMS[:3] for p in (root / name).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    words = Counter(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))
    functions = (node for text in texts for node in ast.walk(ast.parse(text)))
    private = [
        node.name for node in functions
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match("_[a-z]", node.name)
    ]  # fmt: skip
    command = [sys.executable, "-c", FIELDS]
    counted = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    once = sum(words[name] == 2 for name in private)
    return Product(len(files), once, *json.loads(counted.stdout))


FIELDS = """
import json
from backend.settings import Settings
from jobs.kind import kinds
print(json.dumps([len({f for kind in kinds().values() for f in kind.config.model_fields}),
                  len(Settings.model_fields)]))
"""
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
            product = measure_product(root)
        print(revision or "working tree")
        print(f"{'room':<10}{'Python':>8}{'other':>11}{'circles':>9}{'files':>7}  fullest folder")
        for name, room in rooms.items():
            circles = "–" if room.circles is None else room.circles
            print(
                f"{name:<9}{room.python:>7}{room.other:>11}{circles:>9}{room.files:>7}"
                f"  {room.fullest}"
            )
        lines = sum(room.python + room.other for name, room in rooms.items() if name != "tests")
        print(
            f"product: {lines} lines, {product.files} files of Python, {product.fields} fields, "
            f"{product.settings} settings, {product.called_once} private functions called once"
        )
        figures = {name: asdict(room) for name, room in rooms.items()}
        print(json.dumps({"revision": revision, **figures, "product": asdict(product)}))


if __name__ == "__main__":
    main(sys.argv[1:])
