"""One SDS run as people start it, through the queue: perplexity of each stage, minutes, memory.

make bench-sds ARGS="--preset 'quick look' --pattern 50%"
"""

from __future__ import annotations

import argparse
import json
import time

from rich.console import Console
from rich.table import Table

from backend.queue.actor import Actor
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL
from backend.store.tables import Job
from jobs.kind import kind_named
from jobs.submit import submit

KIND = kind_named("sds")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--preset", default="default", choices=[*KIND.presets])
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--base", default="wanda")
    parser.add_argument("--calibration-text", default="auto")
    parser.add_argument("--evaluation-text", default="auto")
    parser.add_argument("--seed", default=0, type=int)
    return parser.parse_args()


def finish(job: Job) -> Job:
    """Waits for a run to end."""
    while (now := queries.job(job.id)).state not in TERMINAL:
        time.sleep(1)
    return now


def main() -> None:
    chosen = vars(arguments())
    values = {**KIND.presets[chosen.pop("preset")], **chosen}
    upgrade()
    job = finish(submit("sds", values, Actor("benchmark", "host"), name="benchmark"))
    results = {(r.stage, str(r.metric)): r for r in queries.results([job.id])}
    table = Table("stage", "perplexity", "±", "bits/byte", title=f"{job.run}: {job.state}")
    figures: dict[str, float] = {}
    for stage, label in KIND.stages.items():
        if (stage, "perplexity") in results:
            found, bits = results[stage, "perplexity"], results[stage, "bits_per_byte"]
            spread = f"{found.stderr or 0:.3f}"
            table.add_row(label, f"{found.value:.3f}", spread, f"{bits.value:.4f}")
            figures[f"perplexity_{stage}"] = round(found.value, 4)
    if job.finished_at and job.started_at:
        figures["minutes"] = round((job.finished_at - job.started_at) / 60_000, 2)
    figures["peak_gb"] = round((job.peak_bytes or 0) / 1e9, 2)
    Console().print(table, f"{figures.get('minutes')} minutes, {figures['peak_gb']} GB at most")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
