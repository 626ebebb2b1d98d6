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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOMS = ("backend", "jobs", "ui", "tests")
COUNTED = (".py", ".html", ".css", ".js", ".cpp", ".h")
ROOT = Path(__file__).parents[1]
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
print(json.dumps(sum(len(graph.nominate_cycle_breakers(name)) for name in packages)))
"""


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


def asked(root: Path, script: str, *arguments: str) -> Any:
    """What a script answers about the packages below `root`."""
    command = [sys.executable, "-c", script, *arguments]
    return json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout)


def measure(root: Path, name: str) -> dict[str, Any]:
    """Of a top-level folder: lines of Python and of all else (templates, styles, scripts, C++), its
    fullest folder, and how many imports have to go until no package holds a circle; tests are no
    package."""
    lines, folders = Counter[str](), Counter[str]()
    for path in (p for p in sorted((root / name).rglob("*")) if p.suffix in COUNTED):
        lines[path.suffix] += len(path.read_text(encoding="utf-8").splitlines())
        folders[str(path.parent.relative_to(root))] += path.name != "__init__.py"
    ((fullest, files),) = folders.most_common(1)
    python, circles = lines.pop(".py"), 0 if name == "tests" else asked(root, CIRCLES, name)
    return {
        "room": name,
        "Python": python,
        "other": lines.total(),
        "circles": circles,
        "files": files,
        "fullest folder": fullest,
    }


def measure_product(root: Path) -> dict[str, int]:
    """What no single room tells; private functions are called once that are named once besides
    their definition, fields are those of all kinds of run together, each name once."""
    files = [p for name in ROOMS[:3] for p in (root / name).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    words = Counter(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))
    private = [
        node.name
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match("_[a-z]", node.name)
    ]
    fields, settings = asked(root, FIELDS)
    once = sum(words[name] == 2 for name in private)
    return {"files": len(files), "called once": once, "fields": fields, "settings": settings}


def main(revisions: Sequence[str]) -> None:
    for revision in revisions or ("",):
        with checkout(revision) as root:
            rooms, product = [measure(root, name) for name in ROOMS], measure_product(root)
        print(revision or "working tree")
        for row in ([*rooms[0]], *(room.values() for room in rooms)):
            print(*(f"{cell:<10}" for cell in row))
        lines = sum(room["Python"] + room["other"] for room in rooms if room["room"] != "tests")
        print(
            "product:", ", ".join(f"{n} {name}" for name, n in {"lines": lines, **product}.items())
        )
        print(json.dumps({"revision": revision, "rooms": rooms, "product": product}))


if __name__ == "__main__":
    main(sys.argv[1:])
