"""Links of the docs lead somewhere; commands, places and tests that they name exist."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from click import Context

from jobs.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\]\(([^()\s]+)\)|src=\"([^\"]+)\"")
CODE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    dead = []
    for link in (one or other for one, other in LINK.findall(text)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_the_places_of_concepts_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.split("| concept | place |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    for row in rows:
        concept, cell = (part.strip() for part in row.strip("|").split("|"))
        first, *others = re.findall(r"`([^`]+)`", cell)
        folder = ROOT / (first if first.endswith("/") else Path(first).parent)
        for place in (first, *others):
            assert (ROOT / place).exists() or (folder / place).exists(), f"{concept}: {place}"


def rows_of(page: str, section: str) -> list[str]:
    """The rows of the table in a section ("## Faults") of a page in docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.split("\n##+ ", text.split(f"\n{section}\n")[1])[0].splitlines()
    return [line for line in lines if line.startswith("|")][2:]  # below the heads


PROMISES = [
    ("operations.md", "## Faults"),
    ("operations.md", "## More than one machine"),
    ("operations.md", "### A Ray cluster"),
    ("operations.md", "### A Slurm cluster"),
    ("security.md", "## Attacks"),
]


@pytest.mark.parametrize(("page", "section"), PROMISES)
def test_every_promise_names_a_test_there_is(page: str, section: str) -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    existing = set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE))
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in rows_of(page, section)]
    assert named and all(named)
    assert set().union(*named) - existing == set()


# the docs name the commit
OF_EARLIER_COMMITS = {"bench-acceleration", "bench-exports.sizes", "bench-scale.room"}
SHELL = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shell_lines(program: str) -> list[list[str]]:
    """Words of every line in the docs' shell blocks that starts with `program`."""
    blocks = [block for page in PAGES for block in SHELL.findall(page.read_text(encoding="utf-8"))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("words", shell_lines("slimscope"), ids=" ".join)
def test_the_command_line_accepts_every_command_of_the_docs(words: list[str]) -> None:
    end = next((place for place, word in enumerate(words) if word in ("&&", "|", ">")), None)
    group = typer.main.get_command(app)
    name, *arguments = words[1:end]
    command = group.get_command(Context(group), name)
    assert command is not None
    command.make_context(name, arguments)


def test_make_has_every_target_of_the_docs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.-]+):", makefile, re.MULTILINE))
    named = {words[1] for words in shell_lines("make")} - OF_EARLIER_COMMITS
    modules = {target.partition("-")[2].replace(".", "/") for target in named - targets}
    files = {module: ROOT / "benchmarks" / module for module in modules}
    assert len(named) >= 10
    assert [
        module
        for module, path in files.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_merge_is_left_half_done(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", text, re.MULTILINE)
