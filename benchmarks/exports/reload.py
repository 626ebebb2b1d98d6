"""A saved model, loaded by plain transformers in its own process: does it give what was recorded?

make bench-exports.reload ARGS="--run sds-0001"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backend.models.loading import load
from backend.queue.folders import run_folder
from backend.store import queries
from backend.store.states import State
from backend.text.slices import evaluation_slice

SCRIPT = Path(__file__).parents[1] / "tests" / "plain_transformers.py"


def token_ids(run: str) -> list[list[int]]:
    """The run's evaluation windows, cut again; refuses when they are not the recorded ones."""
    job = queries.job(run)
    text = job.environment["text"]
    names = [text[role]["corpus"] for role in ("calibration", "evaluation")]
    about = text["evaluation"]
    tokenizer = load(job.config["model"]).tokenizer
    found = evaluation_slice(
        about["corpus"], tokenizer, about["windows"], about["context"], names[0] == names[1]
    )
    assert found.sha256 == about["sha256"], "the text has changed since the run"
    rows: list[list[int]] = found.input_ids.tolist()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    done = queries.jobs([State.SUCCEEDED], "sds", limit=1)
    parser.add_argument("--run", default=done[0].run if done else None)
    run = parser.parse_args().run or sys.exit("No SDS run has succeeded here yet.")
    results = {(r.stage, str(r.metric)): r for r in queries.results([run])}
    kept = queries.job(run).kept_stage or sys.exit(f"{run} has kept no stage.")
    request = {"folder": str(run_folder(run) / "model"), "ids": token_ids(run)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=json.dumps(request), capture_output=True, text=True,
        check=True, cwd="/",
    )  # fmt: skip
    plain = json.loads(done.stdout)
    figures = {
        "recorded_perplexity": results[kept, "perplexity"].value,
        "plain_perplexity": plain["perplexity"],
        "recorded_zero_share": results[kept, "zero_share"].value,
        "plain_zero_share": plain["zero_share"],
    }
    table = Table("what", "figure", title=f"{run}, stage {kept}")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:.6f}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
