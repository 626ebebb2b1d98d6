"""Makes the example runs anew: real runs of every method on SmolLM2-135M.

    make examples
    make examples ARGS="--data FOLDER"     (the newest run of each kind there)

Takes about an hour and a half on two cores, most of it training. The runs are submitted with the
commands below, which their records keep. What is exported has no weights, and the profiles of a few
blocks.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.backup.examples import FOLDER, PACKED
from backend.store.tables import EXAMPLE
from benchmarks.screen.runs import carry_out

MODEL = "--model=smollm2-135m"
PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
RUNS: dict[str, tuple[str, ...]] = {
    "sds": (MODEL, "--pattern=2:4", "--name=2:4 sparsity"),
    "dlqat": (MODEL, "--bits=3", "--group-size=64", "--name=3 bits, groups of 64"),
    "amphista": (
        MODEL, "--minutes=6", "--answers=320", "--heldout=32", "--name=4 heads, 6 minutes",
    ),
    "benchmark": (MODEL, "--drafters=amphista-0003", "--name=Drafter against prompt lookup"),
    "generate": (
        f"--prompt={PROMPT}", "--sides=smollm2-135m,amphista-0003,sds-0001,dlqat-0002",
        "--max-new-tokens=120", "--name=One prompt, four models",
    ),
}  # fmt: skip
BLOCKS, MIDDLE = (0, 15, 29), 15  # whose profiles are kept; those of groups of the middle one alone
GROUPS = ("scale", "error", "magnitude", "clipped", "worst")
WEIGHTS = ("model", "drafter")  # kinds of artefacts
NAMED = (  # where one run names another
    ("jobs", "config"), ("results", "stage"), ("decoder_reports", "decoder"),
    ("decoder_reports", "report"), ("metric_points", "stage"),
)  # fmt: skip
EXPORT = """
import sys
from pathlib import Path
from backend.backup.single import export_run
export_run(sys.argv[1], Path(sys.argv[2]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a data folder with these runs")
    given = parser.parse_args().data
    with TemporaryDirectory(prefix="slimscope-examples-") as folder:
        data = given or Path(folder, "runs")
        if given is None:
            carry_out(data, [(kind, *words) for kind, words in RUNS.items()])
        write_examples(data.absolute(), Path(folder, "trimmed"))


def write_examples(data: Path, trimmed: Path) -> None:
    """The newest run of each kind, exported into the package."""
    trimmed.mkdir()
    with closing(sqlite3.connect(trimmed / "results.db")) as copy:
        with closing(sqlite3.connect(data / "results.db")) as source:
            source.backup(copy)
        runs = trim(copy)
    for run in runs.values():
        copy_small_files(data / "artifacts" / run, trimmed / "artifacts" / run)
    FOLDER.mkdir(exist_ok=True)
    for kind, run in runs.items():
        archive = trimmed / f"{kind}.tar"
        variables = os.environ | {"SLIMSCOPE_DATA_DIR": str(trimmed)}
        line = [sys.executable, "-c", EXPORT, run, str(archive)]
        subprocess.run(line, check=True, env=variables)
        target = FOLDER / f"{kind}{PACKED}"
        with archive.open("rb") as source_file, lzma.open(target, "wb", preset=9) as packed:
            shutil.copyfileobj(source_file, packed)
        print(f"{run} -> {target.name}, {target.stat().st_size / 1e6:.2f} MB")


def trim(copy: sqlite3.Connection) -> dict[str, str]:
    """Kind -> run; what an example does not keep is deleted from the copy of the database."""
    newest = "SELECT kind, max(id) FROM jobs WHERE state = 'succeeded' AND id > 0 GROUP BY kind"
    numbers = {kind: number for kind, number in copy.execute(newest) if kind in RUNS}
    runs = {kind: f"{kind}-{number:04d}" for kind, number in numbers.items()}
    copy.execute(f"DELETE FROM tensor_profiles WHERE block NOT IN {BLOCKS}")
    copy.execute(f"DELETE FROM tensor_profiles WHERE block != {MIDDLE} AND name IN {GROUPS}")
    copy.execute(f"DELETE FROM artifacts WHERE kind IN {WEIGHTS}")
    for kind, run in runs.items():
        for table, column in NAMED:
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            copy.execute(change, (run, f"{kind}-{EXAMPLE}"))
    copy.commit()
    copy.execute("VACUUM")
    return runs


def copy_small_files(source: Path, target: Path) -> None:
    """Logs and transcripts; nothing in the folders of models."""
    for file in (*source.glob("*"), *source.glob("a[0-9]*/*")):
        if file.is_file():
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copied)


if __name__ == "__main__":
    main()
