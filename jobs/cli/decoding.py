"""`slimscope benchmark` and `slimscope generate`: runs that people watch to their end."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from backend.queue.launcher import SUPERVISOR
from backend.store import queries
from backend.store.states import TERMINAL, State
from jobs import operations
from jobs.benchmark import config as benchmark
from jobs.benchmark.kind import KIND as BENCHMARK
from jobs.benchmark.report import decoder_reports, verdicts
from jobs.cli.console import EXIT, follow, me, out, write
from jobs.generate import config as generate
from jobs.generate import transcript
from jobs.record import record
from jobs.submit import submit

WATCH_S = 0.1  # between looks at a text that grows
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_decoding(app: typer.Typer) -> None:
    """Gives the command line its two commands."""
    app.command("benchmark")(benchmark_drafters)
    app.command("generate")(generate_text)


def benchmark_drafters(
    drafters: Annotated[
        list[str] | None, typer.Argument(help="Runs such as amphista-0007.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="Empty: the drafters' base.")] = "",
    prompts: Annotated[str, typer.Option(help="A set, or file:NAME.jsonl.")] = "auto",
    preset: Annotated[str, typer.Option(help=" | ".join(BENCHMARK.presets))] = "default",
    as_json: Json = False,
) -> None:
    """Time decoding with and without drafters on this machine, and report what limits it."""
    values = {"drafters": ", ".join(drafters or ()), "prompts": prompts}
    values["model"] = model or _base_of(drafters or [])
    job = submit(benchmark.NAME, {**BENCHMARK.preset(preset), **values}, me())
    ended = follow(job.run, quiet=as_json)
    if as_json:
        print(json.dumps(record(job.run), indent=1))
    elif ended.error:
        out.print(f"{ended.run}: " + ended.error_text, markup=False)
    else:
        out.print(speed_table(job.run))
        for sentence in verdicts(decoder_reports(job.run)):
            out.print(sentence, markup=False)
    raise typer.Exit(EXIT[State(ended.state)])


def _base_of(drafters: list[str]) -> str:
    """The model the first drafter was trained for; the usual one without any."""
    usual = str(benchmark.BenchmarkJob.model_fields["model"].default)
    return str(queries.job(drafters[0]).config.get("model", usual)) if drafters else usual


def speed_table(run: str) -> Table:
    """One line a decoder."""
    table = Table("decoder", "tokens/s", "speed-up", "accepted", "break-even", "nodes", box=None)
    for report in decoder_reports(run):
        table.add_row(
            escape(report.label), f"{report.speed:.1f}", f"{report.speed_up:.2f}",
            f"{report.accepted:.2f}", f"{report.break_even:.2f}", str(report.nodes),
        )  # fmt: skip
    return table


def generate_text(
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
    as_json: Json = False,
) -> None:
    """Send one prompt to up to four models and drafters, and print the responses as they come."""
    usual = str(generate.GenerateJob.model_fields["sides"].default)
    sides = [*(model or ()), *(drafter or ())] or [usual]
    values = {
        "prompt": prompt, "sides": ", ".join(sides), "max_new_tokens": max_new_tokens,
        "temperature": temperature, "seed": seed, "lookup": lookup,
    }  # fmt: skip
    job = submit(generate.NAME, values, me())
    try:
        for number, side in enumerate(generate.read_sides(job.config["sides"]), 1):
            _watch(job.run, number, side.name, quiet=as_json)
    except KeyboardInterrupt:
        operations.cancel_run(job.run, me())
        raise
    ended = follow(job.run, quiet=True)
    if as_json:
        texts = [vars(transcript.read_transcript(job.run, n)) for n in range(1, len(sides) + 1)]
        print(json.dumps(texts, indent=1, default=vars))
    elif ended.error:
        out.print(ended.error_text, markup=False)
    raise typer.Exit(EXIT[State(ended.state)])


def _watch(run: str, side: int, name: str, quiet: bool) -> None:
    """Prints one side's text while it grows, and how fast it came."""
    printed, heading = 0, f"[{name}]\n"
    while True:
        over = queries.job(run).state in TERMINAL
        written = transcript.read_transcript(run, side)
        if not quiet:
            write(heading * (not printed and bool(written.text)) + written.text[printed:])
        printed = len(written.text)
        if written.end or over:
            break
        SUPERVISOR.wake()
        time.sleep(WATCH_S)
    if not quiet and written.accepted:
        speed = f"{written.speed:.1f} tokens/s, " if written.speed else ""
        print(f"\n[{speed}{written.accepted:.2f} tokens a pass]\n")
