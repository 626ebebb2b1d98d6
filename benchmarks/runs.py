"""Runs as people start them, through the queue: seconds by step, memory, the stage that is kept,
and the perplexity of each; beside the same runs of another revision, their ratios on the same
windows.

make bench-runs                                               # quick look and default, three kinds
make bench-runs ARGS="--kinds sds --presets 'quick look' --against before.json" > after.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.queue.actor import Actor
from backend.statistics.paired import WINDOW_LOSSES, paired_ratio
from backend.store import queries, tensors
from backend.store.migrate import upgrade
from backend.store.tables import Job
from benchmarks.sds import finish
from jobs.kind import kind_named
from jobs.submit import submit

KINDS, PRESETS = ("sds", "dlqat", "amphista"), ("quick look", "default")
REST = "evaluation, loading, start"  # which no step of a run's own account is
CONSOLE = Console(stderr=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--against", type=Path, help="what another revision has printed")
    return parser.parse_args()


def account(job: Job) -> dict[str, Any]:
    """What is told of a run that has ended."""
    whole = ((job.finished_at or 0) - (job.started_at or 0)) / 1000
    seconds = {x.step: x.seconds for x in queries.step_times([job.id])}
    seconds[REST] = whole - sum(seconds.values())
    losses = {x.stage: x.values.tolist() for x in tensors.profiles(job.id, "", WINDOW_LOSSES)}
    return {
        "state": job.state, "seconds": whole, "steps": seconds,
        "peak": job.peak_bytes or 0, "kept": job.kept_stage,
        "perplexity": {
            x.stage: x.value for x in queries.results([job.id]) if str(x.metric) == "perplexity"
        },
        "losses": losses,
    }  # fmt: skip


def show(title: str, found: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """Print one run."""
    head = f"{title}: {found['state']}, {found['seconds']:.0f} s, {found['peak'] / 1e9:.2f} GB"
    if before:
        head += f" (before {before['seconds']:.0f} s, {before['peak'] / 1e9:.2f} GB)"
    steps = Table("step", "seconds", "before", title=f"{head}; {found['kept']} is kept")
    for step, seconds in sorted(found["steps"].items(), key=lambda item: -item[1]):
        earlier = before["steps"].get(step) if before else None
        steps.add_row(step, f"{seconds:.1f}", "" if earlier is None else f"{earlier:.1f}")
    CONSOLE.print(steps)
    stages = Table("stage", "perplexity", "÷ before (95 % interval)")
    for stage, value in found["perplexity"].items():
        earlier = before["losses"].get(stage, []) if before else []
        ratio = paired_ratio(found["losses"].get(stage, []), earlier)
        told = f"{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})" if ratio else ""
        stages.add_row(stage, f"{value:.3f}", told)
    CONSOLE.print(stages)


def main() -> None:
    asked = arguments()
    before = json.loads(asked.against.read_text()) if asked.against else {}
    upgrade()
    found = {}
    for name in asked.kinds:
        for preset in asked.presets:
            values = {**kind_named(name).presets[preset], "model": asked.model}
            job = finish(submit(name, values, Actor("benchmark", "host"), name="benchmark"))
            title = f"{name}, {preset}"
            found[title] = account(job)
            show(title, found[title], before.get(title))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
