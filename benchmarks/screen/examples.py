"""Example runs: real runs of every method on SmolLM2-135M, and a conversation with their models.

    make examples
    make examples ARGS="--data FOLDER"     (a data folder of your own)

Takes about 50 minutes on two quiet cores. Runs of these names that have succeeded in the data
folder are kept: the command can be interrupted and repeated. Exported runs have no weights, and the
profiles of a few blocks only.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from backend.backup.examples import CONVERSATION, FOLDER, PACKED_SUFFIX, example_name
from backend.queue import conversations
from backend.queue.actor import Actor
from backend.settings import settings
from backend.statistics.paired import WINDOW_LOSSES
from backend.statistics.tensors import SENSITIVITY
from backend.store.tables import run_name
from benchmarks.screen.runs import carry_out
from benchmarks.screen.server import dashboard, reads
from jobs.chat import ask
from jobs.estimates import processor

MODEL = "--model=smollm2-135m"
DRAFTER = (MODEL, "--answers=640", "--heldout=32", "--minutes=0", "--steps=700")
# file -> the words of the command and the name of the run; {file}: the run of another file
RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "sds": (
        (MODEL, "--pattern=2:4", "--base=wanda", "--control"),
        "2:4: SDS after Wanda",
    ),
    "sds-2": (
        (MODEL, "--pattern=2:4", "--base=alps", "--reconstruct=3", "--until=first"),
        "2:4: ALPS, blocks reconstructed",
    ),
    "dlqat": (
        (MODEL, "--bits=3", "--stages=gptq, block-wise, dlqat, dlqat-kd"),
        "3 bits: DL-QAT after GPTQ",
    ),
    "dlqat-2": (
        (
            "--model={sds-2}",
            "--bits=4",
            "--keep-zeros",
            "--stages=gptq, dlqat-kd",
        ),
        "2:4, then 4 bits",
    ),
    "amphista": (DRAFTER, "Amphista, 700 steps"),
    "amphista-2": ((*DRAFTER, "--architecture=hydra"), "Hydra, 700 steps"),
    "benchmark": (
        (MODEL, "--drafters={amphista}, {amphista-2}", "--threads=1"),
        "Amphista and Hydra against prompt lookup",
    ),
    "profile": ((MODEL,), "Sensitivity of every layer"),
}
BLOCKS, MIDDLE = (0, 15, 29), 15  # whose profiles are kept; those of groups of the middle one alone
SIDES = "smollm2-135m, {dlqat}, {sds-2}"
PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
SAMPLING = {"max_new_tokens": 120, "repetition_penalty": 1.15}
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
    parser.add_argument("--data", type=Path, default=settings().cache_dir / "examples")
    data = parser.parse_args().data.absolute()
    began = time.monotonic()
    for file, (words, name) in RUNS.items():
        made = found(data) if (data / "results.db").exists() else {}
        if file not in made:
            filled = (word.format_map(made) for word in words)
            carry_out(data, [(kind_of(file), *filled, f"--name={name}")])
    with TemporaryDirectory(prefix="slimscope-examples-") as trimmed:
        write_examples(data, Path(trimmed))
    record_conversation(data)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")


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


def record_conversation(data: Path) -> None:
    """The answers of three models to one prompt, as the Playground writes and stores them."""
    runs = found(data)
    sides = SIDES.format_map(runs)
    asked = {"prompt": PROMPT, "sides": sides, **SAMPLING}
    with reads(data), dashboard(data) as served:
        number = ask(asked, blind=False, actor=Actor("examples", "host"))
        for side in range(1, sides.count(",") + 2):
            address = f"{served.url}/slimscope/answer"
            httpx.post(address, params={"prompt": number, "side": side}, timeout=None)
        turn = conversations.turn(number)
    if not turn.finished:
        sys.exit("The conversation was not recorded: a model did not answer.")
    examples = {run: example_name(file) for file, run in runs.items()}
    recorded = {
        "at": turn.prompt.at,
        "sides": [examples.get(name, name) for name in turn.names],
        "prompt": turn.prompt.text,
        "settings": turn.prompt.settings,
        "answers": [answer.transcript for _, answer in sorted(turn.answers.items())],
    }
    for rows in recorded["answers"]:  # speeds mean little without their processor
        rows[0]["decoder"] = f"{rows[0]['decoder'].removesuffix(')')}, {processor()})"
    (FOLDER / CONVERSATION).write_text(json.dumps(recorded, ensure_ascii=False), "utf-8")


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
