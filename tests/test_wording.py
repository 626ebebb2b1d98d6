"""The language of the product: American spelling, one word for one thing, plain docstrings."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_structure import ROOMS, ROOT, files, tree

TEXT = {".py", ".md", ".js", ".css", ".html", ".h", ".cpp", ".toml", ".yml", ".yaml", ".json"}
QUOTED = {  # texts that models were trained on or asked, licenses, and this list
    "backend/models/sources/toy/stories.py",
    "backend/text/prompts.json",
    "package-lock.json",
    "tests/test_wording.py",
    "backend/export/card.py",  # names a file as others spell it
    "backend/models/sources/cache.py",  # reads a key of older files
    "tests/export/test_layouts.py",
    "tests/models/sources/test_shipped.py",
    "tests/ui/pages/test_home.py",
    "ui/pages/home/showcase.py",
}
BRITISH = re.compile(
    r"colour|behaviour|neighbour|favour|honour|artefact|catalogue|licence|learnt|spelt|grey\b"
    r"|centre|analyse|(quant|normal|optim|initial|summar|recogn|organ|minim|maxim|regular"
    r"|parametr|synchron|vector|token|penal|real|special|general|material|serial|standard"
    r"|factor|capital|util|visual|priorit|random|custom)is(e|ed|es|er|ers|ing|ation|ations)\b",
    re.IGNORECASE,
)
REALIST = re.compile(r"realis[mt]|tokenism|specialis[mt]|generalis[mt]", re.IGNORECASE)
RELATIVE = re.compile(r"(What|Whether|Who|Whom|Whose|Which|Where|How)\b")
RELATIVE_COMMENT = re.compile(rf"(/\*\*?|\{{#-?)[\s*]*{RELATIVE.pattern}.{{,60}}")
GLOSSARY_LIMIT = 80  # terms


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_spelling_is_american() -> None:
    found = [
        f"{relative(path)}: {match[0]}"
        for path in files()
        if path.suffix in TEXT and relative(path) not in QUOTED and "example_runs" not in path.parts
        for match in BRITISH.finditer(path.read_text(encoding="utf-8"))
        if not REALIST.match(match[0])
    ]
    assert found == []


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of everything in a module."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Module():
                name = "module"
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                name = node.name
            case _:
                continue
        yield name, ast.get_docstring(node) or ""


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    relative_clauses = [
        f"{relative(path)}: {name}: {text[:60]}"
        for path in files(*ROOMS)
        if path.suffix == ".py"
        for name, text in docstrings(path)
        if RELATIVE.match(text)
    ]
    assert relative_clauses == []


def test_comments_of_scripts_and_templates_begin_with_a_noun_or_a_verb() -> None:
    relative_clauses = [
        f"{relative(path)}: {match[0].strip()}"
        for path in files("ui")
        if path.suffix in {".js", ".css", ".html"}
        for match in RELATIVE_COMMENT.finditer(path.read_text(encoding="utf-8"))
    ]
    assert relative_clauses == []


@cache
def glossary() -> dict[str, list[str]]:
    """Term -> synonyms that names must not contain."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Glossary")[1].split("|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {term: re.findall(r"\w+", synonyms) for term, _, _, synonyms in rows}


def test_the_glossary_is_short_and_sorted() -> None:
    terms = [*glossary()]
    assert len(terms) <= GLOSSARY_LIMIT and terms == sorted(terms)


def names(path: Path) -> Iterator[str]:
    """Names that a module defines, in words: `kept_stage` -> "kept stage"."""
    yield path.stem
    for node in ast.walk(tree(path)):
        match node:
            case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                yield name
            case ast.arg(name) | ast.Name(name, ast.Store()):
                yield name


@pytest.mark.parametrize("term", [term for term, synonyms in glossary().items() if synonyms])
def test_names_keep_to_the_glossary(term: str) -> None:
    banned = re.compile("|".join(glossary()[term]), re.IGNORECASE)
    found = [
        f"{relative(path)}: {name}"
        for path in files(*ROOMS)
        if path.suffix == ".py"
        for name in names(path)
        if banned.search(name.replace("_", ""))
    ]
    assert found == []
