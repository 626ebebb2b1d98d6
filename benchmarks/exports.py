"""Exports as llama.cpp and plain transformers read them, beside what was recorded of the models.

    make bench-exports ARGS="sds-0001 dlqat-0002 --types auto,Q8_0"
    make bench-exports ARGS="sds-0001 --plain"

Each run's model is exported to each type and read by llama.cpp: on the windows of token ids the run
was evaluated on, it has to give the perplexity the run has recorded, and it has to split a sample
into the same tokens. `difference` is relative to the recorded perplexity. A model that is no run is
measured with transformers in float32 first.

With `--plain` the saved folder is read by plain transformers instead, in a process that imports
nothing of Slimscope.

llama.cpp needs `llama-cpp-python` (pip install llama-cpp-python), which is no dependency.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from backend.calibration.heldout import window_nll
from backend.evaluation.perplexity import perplexity
from backend.export.gguf.types import GGUFType
from backend.export.gguf.writing import write_gguf
from backend.models.loading import load, load_tokenizer
from backend.models.sources.catalog import materialize
from backend.reporter import SilentReporter
from backend.store import queries
from backend.text.slices import TextSlice, evaluation_slice
from benchmarks.peers.llama import Llama
from jobs.fields.gguf import exported_type, parse_types
from jobs.fields.models import is_run, resolve_model
from jobs.fields.text import TextConfig, context_length, corpus_names
from jobs.kind import get_kind
from jobs.metrics import PERPLEXITY, ZERO_SHARE

SAMPLE = "It's 12:30 — the naïve café's 1,024 prices\n\n  doubled?! Yes: 汉字, emoji 🙂.\tEnd"
WINDOWS = 8  # of a model that is no run
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["toy"], help="runs, or models")
    parser.add_argument("--types", default="auto", help="such as auto,Q8_0,Q4_0")
    parser.add_argument("--plain", action="store_true", help="have plain transformers read them")
    options = parser.parse_args()
    if options.plain:
        rows = [by_plain(run) for run in options.models]
    else:
        rows = [
            row for model in options.models for row in measure(model, parse_types(options.types))
        ]
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    print(json.dumps(rows))


def measure(spec: str, types: list[GGUFType]) -> list[dict[str, Any]]:
    """One row a type."""
    base = resolve_model(spec)
    folder = Path(base.source) if base.packed else materialize(base.source)
    tokenizer = load_tokenizer(folder, base.facts)
    text, value = recorded(spec) if is_run(spec) else measured(spec)
    rows = []
    with TemporaryDirectory() as scratch:
        for wanted in types:
            type = exported_type(wanted, base)
            file = Path(scratch) / f"{type}.gguf"
            write_gguf(folder, file, type, base.packed, spec, SilentReporter())
            losses, tokens = by_llama(file, text.input_ids)
            found = math.exp(losses.mean())
            rows.append(
                {
                    "model": spec,
                    "type": type,
                    "MB": file.stat().st_size / 1e6,
                    "ours": value,
                    "llama.cpp": found,
                    "difference": found / value - 1,
                    "same tokens": tokens == tokenizer(SAMPLE, add_special_tokens=False).input_ids,
                }
            )
    return rows


def recorded(run: str) -> tuple[TextSlice, float]:
    """The text a run was evaluated on, and the perplexity of the stage it kept."""
    job = queries.job(run)
    config = get_kind(job.kind).config.model_validate(job.config)
    assert isinstance(config, TextConfig)
    base = load(job.config["model"])
    _, evaluation = corpus_names(config, base.facts.default_text)
    length = context_length(config, base.facts)
    text = evaluation_slice(evaluation, base.tokenizer, config.windows, length)
    assert text.sha256 == job.environment["text"]["evaluation"]["sha256"], "The text has changed."
    values = {r.stage: r.value for r in queries.results([run]) if r.metric == PERPLEXITY}
    return text, values[str(job.kept_stage)]


def measured(spec: str) -> tuple[TextSlice, float]:
    """A text, and the perplexity of a model on it."""
    loaded = load(spec, dtype=torch.float32)
    length = min(512, loaded.facts.context)
    text = evaluation_slice(loaded.facts.default_text, loaded.tokenizer, WINDOWS, length)
    return text, perplexity(loaded.model, text, 4).value


def by_llama(file: Path, windows: Tensor) -> tuple[Tensor, list[int]]:
    """Mean loss of each window [n, L] in llama.cpp, and its tokens of the sample."""
    llama, losses = Llama(file, (), windows.shape[1], torch.get_num_threads()), []
    for ids in windows:
        llama.rewind()
        losses.append(window_nll(llama.logits(ids.tolist()).double()[None], ids[None]))
    return torch.cat(losses), llama.tokenize(SAMPLE)


def by_plain(run: str) -> dict[str, Any]:
    """What plain transformers says of the folder a run has saved, beside what was recorded."""
    (text, value), kept = recorded(run), queries.job(run).kept_stage
    zeros = {r.stage: r.value for r in queries.results([run]) if r.metric == ZERO_SHARE}
    request = {"folder": resolve_model(run).source, "ids": text.input_ids.tolist()}
    line = [sys.executable, ROOT / "tests" / "plain_transformers.py"]
    done = subprocess.run(
        line, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True, cwd="/"
    )
    found = json.loads(done.stdout)
    return {
        "model": run,
        "ours": value,
        "plain": found["perplexity"],
        "zeros": zeros.get(str(kept), ""),
        "plain zeros": found["zero_share"],
    }


if __name__ == "__main__":
    main()
