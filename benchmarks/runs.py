"""Runs as people start them, through the queue: seconds by step, memory, the stage that is kept,
and the perplexity of each; beside the same runs of another revision, their ratios on the same
windows.

make bench-runs                                               # quick look and default, three kinds
make bench-runs ARGS="--kinds sds --presets 'quick look' --set pattern=50% --against before.json"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.queue.actor import Actor
from backend.statistics.paired import WINDOW_LOSSES, paired_ratio
from backend.store import queries, tensors
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL
from backend.store.tables import Job
from jobs.kind import get_kind
from jobs.submit import submit

KINDS, PRESETS = ("sds", "dlqat", "amphista"), ("quick look", "default")
REST = "evaluation, loading, start"  # which no step of a run's own account is
CONSOLE = Console(stderr=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--set", nargs="+", default=[], help="fields of the config: NAME=VALUE")
    parser.add_argument("--against", type=Path, help="what another revision has printed")
    return parser.parse_args()


def finish(job: Job) -> Job:
    """Waits for a run to end."""
    while (now := queries.job(job.id)).state not in TERMINAL:
        time.sleep(1)
    return now


def account(job: Job) -> dict[str, Any]:
    """What is told of a run that has ended."""
    whole = ((job.finished_at or 0) - (job.started_at or 0)) / 1000
    seconds = {x.step: x.seconds for x in queries.step_times([job.id])}
    seconds[REST] = whole - sum(seconds.values())
    found = {(x.stage, str(x.metric)): x for x in queries.results([job.id])}
    losses = {x.stage: x.values.tolist() for x in tensors.profiles(job.id, "", WINDOW_LOSSES)}
    return {
        "state": job.state,
        "seconds": whole,
        "steps": seconds,
        "peak": job.peak_bytes or 0,
        "kept": job.kept_stage,
        "perplexity": {
            stage: (x.value, x.stderr or 0.0, found[stage, "bits_per_byte"].value)
            for (stage, metric), x in found.items()
            if metric == "perplexity"
        },
        "losses": losses,
    }


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
    stages = Table("stage", "perplexity", "±", "bits/byte", "÷ before (95 % interval)")
    for stage, (value, spread, bits) in found["perplexity"].items():
        earlier = before["losses"].get(stage, []) if before else []
        ratio = paired_ratio(found["losses"].get(stage, []), earlier)
        told = f"{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})" if ratio else ""
        stages.add_row(stage, f"{value:.3f}", f"{spread:.3f}", f"{bits:.4f}", told)
    CONSOLE.print(stages)


def main() -> None:
    asked = arguments()
    chosen = dict(each.split("=", 1) for each in asked.set)
    before = json.loads(asked.against.read_text()) if asked.against else {}
    upgrade()
    found = {}
    for name in asked.kinds:
        for preset in asked.presets:
            values = {**get_kind(name).presets[preset], "model": asked.model, **chosen}
            job = finish(submit(name, values, Actor("benchmark", "host"), name="benchmark"))
            title = f"{name}, {preset}"
            found[title] = account(job)
            show(title, found[title], before.get(title))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
