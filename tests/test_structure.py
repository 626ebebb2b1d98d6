"""The rules that keep the layout: a stranger finds every concept from the folders."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.kind import kinds
from jobs.metrics import METRICS
from ui.pages import pages

ROOT = Path(__file__).parents[1]
ROOMS = ("backend", "jobs", "ui")
MOST_FILES = 15
# Packages that are extras, or take a second to load and few callers need; imported where used.
LATE = {
    "alembic",
    "datasets",
    "fsspec",
    "gguf",
    "llama_cpp",
    "lm_eval",
    "mcp",
    "torch",
    "transformers",
}
# Plotly reads these few tags in the text of a chart; they are no HTML of a page.
CHART_TAGS = re.compile(r"</?(b|br|i|sub|sup|extra)>|<extra></extra>")
TAG = re.compile(r"</?[a-z]+[ >]")  # but not b"<script", where the server adds a nonce
WORDS = {  # ordinary words that are names of stages or metrics, too
    "bytes",
    "control",
    "dense",
    "disk",
    "drafter",
    "first",
    "model",
    "parameters",
    "peak",
    "perplexity",
    "second",
    "seconds",
    "size",
    "steps",
    "took",
}


@cache
def files(*folders: str) -> list[Path]:
    """Files git knows, or will know, below these folders."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    found = subprocess.check_output(listed, cwd=ROOT, text=True).split()
    return sorted(ROOT / name for name in set(found) if (ROOT / name).exists())


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(*folders: str) -> list[Path]:
    return [path for path in files(*folders) if path.suffix == ".py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Dotted names a module imports, of packages and of what is in them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_folder_holds_at_most_fifteen_files() -> None:
    counted = Counter(
        path.parent.relative_to(ROOT)
        for path in files(*ROOMS, "tests", "benchmarks")
        if path.name != "__init__.py"
    )
    assert {str(folder): n for folder, n in counted.items() if n > MOST_FILES} == {}


def test_formatters_decide_how_every_line_looks() -> None:
    skips = re.compile(
        r"(#|//|/\*|<!--|\{#) *(fmt: *(skip|off)|(prettier|djlint|clang-format)[ :-]*(ignore|off))"
    )
    sources = [
        path for path in files() if path.suffix in (".py", ".js", ".css", ".html", ".cpp", ".h")
    ]
    assert [str(path) for path in sources if skips.search(path.read_text(encoding="utf-8"))] == []


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["mcp"], *extras["tasks"], *extras["llama"]]
    names = {re.split(r"[\[<>=]", each)[0].replace("-", "_") for each in declared}
    names |= {"lm_eval", "llama_cpp", "pydantic_core", "yaml", *ROOMS, *sys.stdlib_module_names}
    used = {name.split(".")[0] for path in modules(*ROOMS) for name in imported(path)}
    assert used - names == set()


def test_the_constraints_hold_what_is_declared() -> None:
    """`make setup` installs exactly these versions. Versions without a build, so that torch may be
    any build of that version; no packages that only some builds of torch come with."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    held = [Requirement(line) for line in lines if line[0] != "#"]
    pinned = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in held}
    assert [version for version in pinned.values() if {*version} & {*"*+,<>=~"}] == []
    assert [name for name in pinned if name.startswith(("cuda", "nvidia", "triton"))] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    for each in map(Requirement, wanted):
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


def test_ci_installs_files_of_known_hashes() -> None:
    """The versions of constraints.txt, each with hashes: all of them but torch that tests, linters
    and the build need. No action is a tag that could move."""
    lines = (ROOT / "packaging" / "ci-lock.txt").read_text().splitlines()
    entries = "\n".join(line for line in lines if line[0] != "#").replace("\\\n", "").splitlines()
    held, hashes = zip(*(entry.split("--hash=", 1) for entry in entries), strict=True)
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}( +--hash=sha256:\w{64})*", x) for x in hashes)
    known = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {canonicalize_name(each.name): each.specifier for each in map(Requirement, held)}
    constraints = {
        canonicalize_name(each.name): each.specifier
        for each in map(Requirement, (line for line in known if line[0] != "#"))
    }
    assert {name: constraints.get(name) for name in versions} == versions
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = map(Requirement, [*project["dependencies"], *extras["dev"], *extras["lint"]])
    assert {canonicalize_name(each.name) for each in wanted} - {*versions} == {"torch"}
    assert "setuptools" in versions
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    actions = re.findall(r"uses: (.*)", workflow)
    assert actions
    assert [x for x in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", x)] == []


def test_one_name_one_class() -> None:
    found = defaultdict(list)
    for path in modules(*ROOMS):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name_of(path))
    assert {name: homes for name, homes in found.items() if len(homes) > 1} == {}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree(path))
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree(path)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings:
            yield node.lineno, text


def test_html_stands_in_templates() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {text[:60]}"
        for path in modules("ui")
        for line, text in strings(path)
        if TAG.search(CHART_TAGS.sub("", text))
    ]
    assert found == []


def test_the_screen_spells_no_stage_and_no_metric() -> None:
    names = {stage for kind in kinds().values() for stage in kind.stages}
    names |= {family for family, described in METRICS.items() if described.definition}
    found = [
        f"{path.relative_to(ROOT)}:{line} {text}"
        for path in modules("ui")
        if "help" not in path.parts
        for line, text in strings(path)
        if text in names - WORDS
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["ui/widgets", "ui/runs", "ui/charts"])
def test_what_is_shared_serves_two_pages_or_more(folder: str) -> None:
    """What one page uses lives with that page. Parts of the frame count as a page each."""
    importers = defaultdict(set)
    for path in modules("ui"):
        for name in imported(path):
            importers[name].add(name_of(path))

    def users(module: str, seen: frozenset[str] = frozenset()) -> set[str]:
        found: set[str] = set()
        for user in importers[module] - seen - {module}:
            page = re.match(r"ui\.pages\.\w+", user)
            shared = re.match(r"ui\.(widgets|runs|charts)\.", user)
            found |= users(user, seen | {module}) if shared else {page[0] if page else user}
        return found

    shared = [name_of(path) for path in modules(folder) if path.name != "__init__.py"]
    few = {name: users(name) for name in shared}
    assert {name: found for name, found in few.items() if len(found) < 2} == {}


def test_imports_stand_at_the_top() -> None:
    """No module of ours is imported late, and none under TYPE_CHECKING: what is heavy is kept out
    by what a module is for."""
    found = []
    for path in modules(*ROOMS, "app.py"):
        for node in late_imports(path):
            names = (alias.name for alias in node.names)
            packages = [node.module or ""] if isinstance(node, ast.ImportFrom) else [*names]
            if not {package.split(".")[0] for package in packages} <= LATE:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
        if "TYPE_CHECKING" in path.read_text(encoding="utf-8"):
            found.append(f"{path.relative_to(ROOT)} TYPE_CHECKING")
    assert found == []


def late_imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports inside of functions."""
    for function in ast.walk(tree(path)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    yield node


LINK = re.compile(r"""href\(["']([a-z-]*)["']|["'(]([a-z-]+)\?[a-z]+=""")


def test_links_lead_to_pages() -> None:
    paths = {page.path for page in pages()}
    for path in files("ui"):
        if path.suffix in (".py", ".html"):
            text = path.read_text(encoding="utf-8")
            found = {first or second for first, second in LINK.findall(text)}
            assert found <= paths, path
