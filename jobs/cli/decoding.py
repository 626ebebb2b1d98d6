"""`slimscope benchmark` and `slimscope generate`: runs that people watch to their end."""

import time
from typing import Annotated

import typer

from backend.queue.actor import Actor
from backend.queue.launcher import SUPERVISOR
from backend.store import queries
from backend.store.states import TERMINAL
from jobs.benchmark import kind as benchmark
from jobs.benchmark.kind import KIND as BENCHMARK
from jobs.benchmark.report import decoder_reports, verdicts
from jobs.cli.console import exit_of, follow, write
from jobs.fields.drafters import read_sides
from jobs.generate import kind as generate
from jobs.operations.changes import cancel_runs
from jobs.operations.registry import Record, operation
from jobs.operations.text import table
from jobs.record import record
from jobs.serving.transcript import read_transcript
from jobs.submit import submit

WATCH_S = 0.1  # between looks at a text that grows
COLUMNS = ("decoder", "tokens/s", "speed-up", "accepted", "break-even", "nodes")


def _benchmark_text(found: Record) -> str:
    """One line a decoder, and what limits them."""
    run, reports = found["id"], decoder_reports(found["id"])
    if found["error"]:
        return f"{run}: {queries.job(run).error_text}"
    rows = (
        (r.label, f"{r.speed:.1f}", f"{r.speed_up:.2f}", f"{r.accepted:.2f}",
         f"{r.break_even:.2f}", r.nodes)
        for r in reports
    )  # fmt: skip
    return "\n".join([table(COLUMNS, rows), *verdicts(reports)])


@operation(
    "benchmark",
    path="",
    tool="",
    said=_benchmark_text,
    exit_code=lambda found: exit_of(found["state"]),
)
def benchmark_drafters(
    actor: Actor,
    drafters: Annotated[
        list[str] | None, typer.Argument(help="Runs such as amphista-0007.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="Empty: the drafters' base.")] = "",
    prompts: Annotated[str, typer.Option(help="A set, or file:NAME.jsonl.")] = "auto",
    preset: Annotated[str, typer.Option(help=" | ".join(BENCHMARK.presets))] = "default",
) -> Record:
    """Time decoding with and without drafters on this machine, and report what limits it."""
    usual = str(benchmark.BenchmarkJob.model_fields["model"].default)
    base = str(queries.job(drafters[0]).config.get("model", usual)) if drafters else usual
    values = {"drafters": ", ".join(drafters or ()), "prompts": prompts, "model": model or base}
    job = submit(benchmark.NAME, {**BENCHMARK.preset(preset), **values}, actor)
    return record(follow(job.run).run)


@operation(
    "generate", path="", tool="", said=lambda _: "",
    exit_code=lambda texts: exit_of(queries.job(texts[0]["run"]).state),
)  # fmt: skip
def generate_text(
    actor: Actor,
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    drafter: Annotated[
        list[str] | None, typer.Option(help="A run such as amphista-0007; may be repeated.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model, or a run that saved one; may be repeated.")
    ] = None,
    lookup: Annotated[bool, typer.Option(help="Prompt-lookup decoding first.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a response.")] = 96,
    temperature: Annotated[float, typer.Option(help="0: greedy decoding.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> list[Record]:
    """Send one prompt to up to four models and drafters, and print the responses as they come."""
    usual = str(generate.GenerateJob.model_fields["sides"].default)
    sides = [*(model or ()), *(drafter or ())] or [usual]
    values = {
        "prompt": prompt, "sides": ", ".join(sides), "max_new_tokens": max_new_tokens,
        "temperature": temperature, "seed": seed, "lookup": lookup,
    }  # fmt: skip
    job = submit(generate.NAME, values, actor)
    try:
        for number, side in enumerate(read_sides(job.config["sides"]), 1):
            _watch(job.run, number, side.name)
    except KeyboardInterrupt:
        cancel_runs([job.run], actor)
        raise
    ended = follow(job.run)
    if ended.error:
        write(ended.error_text)
    texts = (vars(read_transcript(job.run, n)) for n in range(1, len(sides) + 1))
    return [{"run": job.run} | text for text in texts]


def _watch(run: str, side: int, name: str) -> None:
    """Prints one side's text while it grows, and how fast it came."""
    printed, heading = 0, f"[{name}]\n"
    while True:
        over = queries.job(run).state in TERMINAL
        written = read_transcript(run, side)
        write(heading * (not printed and bool(written.text)) + written.text[printed:], end="")
        printed = len(written.text)
        if written.end or over:
            break
        SUPERVISOR.wake()
        time.sleep(WATCH_S)
    if written.accepted:
        speed = f"{written.speed:.1f} tokens/s, " if written.speed else ""
        write(f"\n[{speed}{written.accepted:.2f} tokens a pass]\n")
