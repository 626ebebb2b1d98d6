"""Makes the example runs anew: real runs of every method on SmolLM2-135M.

    make examples
    make examples ARGS="--data FOLDER"     (the newest runs of these names there)

Takes about two hours on two quiet cores, most of it training. The runs are submitted with the
commands below, which their records keep. What is exported has no weights, and the profiles of a few
blocks. The recorded conversation beside them, conversation.json, stays as it is.
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

from backend.backup.examples import FOLDER, PACKED_SUFFIX, example_name
from backend.statistics.paired import WINDOW_LOSSES
from backend.statistics.tensors import SENSITIVITY
from backend.store.tables import run_name
from benchmarks.screen.runs import carry_out

MODEL = "--model=smollm2-135m"
FOUR_BITS = ("--bits=4", "--group-size=64")
# file -> the words of the command and the name of the run; {file}: the run of another file
RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "sds": (
        (MODEL, "--pattern=2:4", "--base=alps", "--reconstruct=3", "--until=first"),
        "2:4 by ALPS, blocks reconstructed",
    ),
    "dlqat": (
        (MODEL, *FOUR_BITS, "--stages=rtn, gptq, dlqat, dlqat-kd"),
        "4 bits",
    ),
    "dlqat-2": (
        ("--model={sds}", *FOUR_BITS, "--keep-zeros", "--stages=gptq, dlqat-kd"),
        "Pruned, then 4 bits",
    ),
    "profile": ((MODEL,), "Which layers break first"),
    "sds-2": ((MODEL, "--pattern=2:4", "--control"), "2:4 by Wanda: what goes wrong"),
    "amphista": (
        (
            MODEL,
            "--architecture=hydra",
            "--answers=640",
            "--heldout=32",
            "--minutes=0",
            "--steps=350",
            "--threads=1",
        ),
        "Hydra, 350 steps",
    ),
    "benchmark": ((MODEL, "--drafters={amphista}"), "Drafter against prompt lookup"),
}
BLOCKS, MIDDLE = (0, 15, 29), 15  # whose profiles are kept; those of groups of the middle one alone
GROUPS = ("scale", "error", "magnitude", "clipped", "worst")
WEIGHTS = ("model", "drafter")  # kinds of artifacts
NAMED = (  # where one run names another
    ("jobs", "config"),
    ("results", "stage"),
    ("decoder_reports", "decoder"),
    ("decoder_reports", "report"),
    ("metric_points", "stage"),
)
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
            for file, (words, name) in RUNS.items():
                known = found(data) if (data / "results.db").exists() else {}
                filled = (word.format_map(known) for word in words)
                carry_out(data, [(kind_of(file), *filled, f"--name={name}")])
        write_examples(data.absolute(), Path(folder, "trimmed"))


def kind_of(file: str) -> str:
    return file.partition("-")[0]


def found(data: Path) -> dict[str, str]:
    """File -> the newest run of its kind and name that has succeeded."""
    newest = (
        "SELECT max(id) FROM jobs WHERE state = 'succeeded' AND id > 0 AND kind = ? AND name = ?"
    )
    with closing(sqlite3.connect(data / "results.db")) as database:
        numbers = {
            file: database.execute(newest, (kind_of(file), name)).fetchone()[0]
            for file, (_, name) in RUNS.items()
        }
    return {file: run_name(kind_of(file), number) for file, number in numbers.items() if number}


def write_examples(data: Path, trimmed: Path) -> None:
    """The runs that are there, exported into the package."""
    trimmed.mkdir()
    runs = found(data)
    with closing(sqlite3.connect(trimmed / "results.db")) as copy:
        with closing(sqlite3.connect(data / "results.db")) as source:
            source.backup(copy)
        trim(copy, runs)
    for run in runs.values():
        copy_small_files(data / "artifacts" / run, trimmed / "artifacts" / run)
    FOLDER.mkdir(exist_ok=True)
    for file, run in runs.items():
        archive = trimmed / f"{file}.tar"
        variables = os.environ | {"SLIMSCOPE_DATA_DIR": str(trimmed)}
        line = [sys.executable, "-c", EXPORT, run, str(archive)]
        subprocess.run(line, check=True, env=variables)
        target = FOLDER / f"{file}{PACKED_SUFFIX}"
        with archive.open("rb") as source_file, lzma.open(target, "wb", preset=9) as packed:
            shutil.copyfileobj(source_file, packed)
        print(f"{run} -> {target.name}, {target.stat().st_size / 1e6:.2f} MB")


def trim(copy: sqlite3.Connection, runs: dict[str, str]) -> None:
    """Delete what an example does not keep from the copy of the database."""
    others = f"name NOT IN ('{SENSITIVITY}', '{WINDOW_LOSSES}')"  # those are kept whole
    copy.execute(f"DELETE FROM tensor_profiles WHERE block NOT IN {BLOCKS} AND {others}")
    copy.execute(f"DELETE FROM tensor_profiles WHERE block != {MIDDLE} AND name IN {GROUPS}")
    copy.execute(f"DELETE FROM artifacts WHERE kind IN {WEIGHTS}")
    for file, run in runs.items():
        for table, column in NAMED:
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            copy.execute(change, (run, example_name(file)))
    copy.commit()
    copy.execute("VACUUM")


def copy_small_files(source: Path, target: Path) -> None:
    """Logs; nothing in the folders of models."""
    for file in (*source.glob("*"), *source.glob("a[0-9]*/*")):
        if file.is_file():
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copied)


if __name__ == "__main__":
    main()
