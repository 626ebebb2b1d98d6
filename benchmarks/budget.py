"""Mixes of formats that a profile allocates, against the same format everywhere, at equal bytes.

    slimscope submit profile --model smollm2-135m --wait
    make bench-budget ARGS="--profile profile-0001 --bits 2.75 3.25 4.25 --sparsity 50"
    make bench-budget ARGS="--profile profile-0001 --bits 3.25 4.25 5.25 --random 10"
    make bench-budget ARGS="--profile profile-0001 --mb 86.5"
    make bench-budget ARGS="--profile profile-0001 --kquants Q2_K Q3_K_M"

Every mix is built alike, by GPTQ in groups of 64 on symmetric grids or by SparseGPT: block after
block on the inputs that the blocks before it, compressed, give, as runs do.
Ratios are of perplexities on the same test windows, with their paired 95 % interval.
Allocations:

    uniform      one format, or two by turns of the blocks; under a budget of bytes, beside an
                 embedding in 16, 8 and 6 bits
    error        by the output error of a layer alone, relative
    fisher       by the Fisher estimate
    measured     by the measured divergence, others scaled to it
    owl          sparsity by OWL's shares of outliers

Budgets of quality and time, --loss and --ms, have no uniform mix. --clock times a token of each mix
in the native decoder, too, beside what the profile predicts.

--random N builds N mixes at random around each budget: prediction beside measurement. --kquants:
llama.cpp's files with an importance matrix of the same calibration text, measured by llama.cpp,
beside mixes of as many bytes (pip install llama-cpp-python). Rows are added to
the file of --rows one by one, and those that it has are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from backend.budget import Budget
from backend.export.gguf.writing import write_gguf
from backend.models.sources.catalog import materialize
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import Format, SensitivityProfile, spearman
from backend.statistics.paired import paired_ratio
from benchmarks.peers import llama
from benchmarks.shared.mixes import SILENT, Formats, Trial
from jobs.profile.kind import EMBEDDING_FORMATS, parsed
from jobs.profile.profiles import read_profile

FORMATS = (
    "int2-g64, int3-g64, int4-g64, int5-g64, int6-g64, int8-g64, 20%, 30%, 40%, 50%, 60%, 70%, 80%"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, help="a run")
    parser.add_argument("--bits", nargs="*", type=float, default=[], help="scales included")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[], help="per cent")
    parser.add_argument("--mb", nargs="*", type=float, default=[], help="of the file")
    parser.add_argument("--loss", nargs="*", type=float, default=[], help="of quality, per cent")
    parser.add_argument("--ms", nargs="*", type=float, default=[], help="of a token")
    parser.add_argument("--clock", action="store_true", help="time a token of each mix")
    parser.add_argument("--kquants", nargs="*", default=[], help="such as Q3_K_M")
    parser.add_argument("--only", nargs="*", default=["uniform", "error", "fisher"])
    parser.add_argument("--formats", type=parsed, default=parsed(FORMATS), help="in a mix")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=Path("budget.jsonl"))
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--text", default="auto", help="that is measured on")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


Row = dict[str, Any]


@dataclass
class Comparison:
    """Mixes under budgets, a row each; rows that the file has already are not made again."""

    trial: Trial
    profile: SensitivityProfile
    rows: list[Row] = field(default_factory=list)

    def row(
        self,
        mix: str,
        losses: Callable[[], Tensor],
        taken: Callable[[], float] | None = None,
        **said: Any,
    ) -> None:
        given = self.trial.given
        said |= {"mix": mix, "seed": given.seed}
        found = next((x for x in self.rows if said.items() <= x.items()), None)
        if not found:
            start = time.process_time()
            found = said | {"losses": losses().tolist(), "seconds": time.process_time() - start}
            found |= {"ms": taken()} if taken else {}
            self.rows.append(found)
            with given.rows.open("a") as file:
                file.write(json.dumps(found) + "\n")
        print(f"{mix}: {math.exp(np.mean(found['losses'])):.3f}", flush=True)

    def solver(self, by: str, formats: Iterable[Format]) -> BudgetSolver:
        """The mixes by one of the estimates; embedding and head by what was measured."""
        profile, loss = self.profile, self.profile.predicted
        if by != "measured":
            outside = np.array([[x.block < 0] for x in profile.layers])
            loss = np.where(outside, loss, profile.figure(by))
        return BudgetSolver(profile, 0, frozenset(formats), np.where(np.isnan(loss), np.inf, loss))

    def compare(self, budget: Budget, label: str) -> None:
        """One row for each allocation."""
        trial, formats = self.trial, self.trial.formats(budget.kind == "sparsity")
        judge = self.solver("fisher", self.profile.formats)
        kind = budget.kind
        fits = {"uniform": kind not in ("loss", "ms"), "owl": kind == "sparsity"}
        for by in (x for x in trial.given.only if fits.get(x, True)):
            if by == "owl":
                self.row(f"{label}, owl", partial(trial.by_owl, f"{100 * budget.value:g}%"))
                continue
            if by == "uniform":
                self.build_uniform(formats, budget, label, judge)
                continue
            mix = self.solver(by, (*formats, *EMBEDDING_FORMATS)).solve(budget)
            self.build(f"{label}, {by}", mix, judge)
        for number in range(trial.given.random if kind == "bits" else 0):
            random = Random(number)
            near = [x for x in formats if abs(x.bits_per_weight(64) - budget.value) < 1.5]
            drawn = {
                x.name: random.choice(near) if x.block >= 0 else Format()
                for x in self.profile.layers
            }
            self.build(f"{label}, random {number}", judge.mix(drawn), judge)

    def build(self, label: str, mix: Mix, judge: BudgetSolver) -> None:
        predicted, trial = judge.mix(mix.formats), self.trial
        taken, told = None, {}
        if trial.given.clock:
            taken = partial(trial.milliseconds, mix.formats)
            told = {"predicted_ms": round(predicted.milliseconds or 0, 3)}
        measured = self.solver("measured", self.profile.formats).mix(mix.formats)
        self.row(
            label,
            partial(trial.mixed, mix.formats),
            taken,
            bits=round(mix.bits, 4),
            MB=round(mix.nbytes / 1e6, 3),
            sparsity=round(mix.sparsity, 4),
            error=round(self.solver("error", self.profile.formats).mix(mix.formats).loss, 6),
            fisher=round(predicted.loss, 6),
            measured=round(measured.loss, 6),
            **told,
        )

    def build_uniform(
        self, formats: Sequence[Format], budget: Budget, label: str, judge: BudgetSolver
    ) -> None:
        """Uniform layers; under a budget of bytes, beside each embedding that leaves room for the
        narrowest of them."""
        of_file = budget.kind == "size"
        for outside in (EMBEDDING_FORMATS[0], Format(), EMBEDDING_FORMATS[1])[
            : 3 if of_file else 1
        ]:
            beside = outside if of_file else Format()
            try:
                mix = judge.mix(self.uniform(formats, budget, beside))
            except ValueError:
                continue
            name = "uniform" if outside == EMBEDDING_FORMATS[0] else f"uniform beside {outside}"
            self.build(f"{label}, {name}", mix, judge)

    def uniform(self, formats: Sequence[Format], budget: Budget, outside: Format) -> Formats:
        """One format, or two that alternate by blocks so that the budget is kept. `outside`: format
        of the embedding. Raises ValueError: even the narrowest format exceeds the budget."""
        layers, weights = self.profile.layers, self.trial.weights
        fixed = sum(outside.nbytes(x.rows, x.columns) for x in layers if x.block < 0)
        limit = 8 * (budget.value - fixed) / weights if budget.kind == "size" else budget.value

        def spent(form: Format) -> float:
            return form.sparsity if budget.kind == "sparsity" else form.bits_per_weight(64)

        ladder = sorted(formats, key=spent)
        low = max((x for x in ladder if spent(x) < limit + 1e-6), key=spent)
        high = next((x for x in ladder if spent(x) > spent(low)), low)
        share = (limit - spent(low)) / max(spent(high) - spent(low), 1e-9)

        def chosen(block: int) -> Format:
            more = math.floor((block + 1) * share + 1e-6) > math.floor(block * share + 1e-6)
            return high if more else low

        return {x.name: chosen(x.block) if x.block >= 0 else outside for x in layers}

    def llama(self, folder: Path) -> None:
        """llama.cpp's files of the model, and mixes of the same bytes."""
        trial, source = self.trial, folder / "model.gguf"
        write_gguf(materialize(trial.source), source, "F32", False, "", SILENT)
        types = {name: llama.MIXES[name] for name in trial.given.kquants}
        threads = torch.get_num_threads()
        for name, path in llama.formats(source, folder, threads, types, trial.importance()):
            nbytes = sum(int(x.n_bytes) for x in GGUFReader(path).tensors)
            self.row(
                f"{name}, llama.cpp",
                partial(trial.of_file, path),
                MB=round(nbytes / 1e6, 3),
            )
            self.compare(Budget("size", nbytes), name)


def table(rows: Sequence[Row]) -> Table:
    """Rows beside the dense model and the uniform one of the same budget."""
    made = Table("mix", "bits", "MB", "perplexity", "÷ uniform", "÷ dense", "predicted", "ms")
    dense = rows[0]["losses"]
    for row in rows:
        label = f"{row['mix'].rpartition(', ')[0]}, uniform"
        of_uniform = next((x["losses"] for x in rows if x["mix"] == label), None)
        beside = of_uniform and row["mix"] != label and paired_ratio(row["losses"], of_uniform)
        made.add_row(
            row["mix"],
            *(f"{row[x]:g}" if x in row else "" for x in ("bits", "MB")),
            f"{math.exp(np.mean(row['losses'])):.2f}",
            f"{beside.value:.3f} ({beside.low:.3f} to {beside.high:.3f})" if beside else "",
            f"{math.exp(np.mean(row['losses']) - np.mean(dense)):.3f}",
            f"{math.exp(row['fisher']):.3f}" if "fisher" in row else "",
            f"{row['ms']:.2f}" if "ms" in row else "",
        )
    return made


def agreement(estimate: str, predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> str:
    """Rank correlation of predictions in nats, their bias, and the factor that they are off by."""
    ratios = measured / predicted
    factors = np.exp(np.abs(np.log(ratios)))
    return (
        f"{estimate}, {len(ratios)} mixes: rank correlation {spearman(predicted, measured):.3f}, "
        f"measured over predicted {np.median(ratios):.3f} ({ratios.min():.3f} to "
        f"{ratios.max():.3f}), off by {np.median(factors):.3f}, at worst {factors.max():.3f}"
    )


def main() -> None:
    given = arguments()
    profile = read_profile(given.profile)
    stored = (
        [json.loads(x) for x in given.rows.read_text().splitlines()] if given.rows.exists() else []
    )
    comparison = Comparison(Trial(given, profile.model), profile, stored)
    comparison.row("dense", comparison.trial.losses)
    for bits in given.bits:
        comparison.compare(Budget("bits", bits), f"{bits:g} bits")
    for share in given.sparsity:
        comparison.compare(Budget("sparsity", share / 100), f"{share:g} %")
    for size in given.mb:
        comparison.compare(Budget("size", 1e6 * size), f"{size:g} MB")
    for share in given.loss:
        comparison.compare(Budget("loss", share / 100), f"{share:g} % lost")
    for taken in given.ms:
        comparison.compare(Budget("ms", taken), f"{taken:g} ms")
    if given.kquants:
        with TemporaryDirectory() as folder:
            comparison.llama(Path(folder))
    alike = [x for x in comparison.rows if x["seed"] == given.seed]
    Console(width=130).print(table(alike))
    if random := [x for x in alike if ", random " in x["mix"]]:
        measured = np.array([np.mean(x["losses"]) - np.mean(alike[0]["losses"]) for x in random])
        for estimate in ("error", "fisher", "measured"):
            print(agreement(estimate, np.array([x[estimate] for x in random]), measured))
    print(json.dumps(alike))


if __name__ == "__main__":
    main()
