"""Mixes of formats that a profile allocates, against the same format everywhere, at equal bytes.

    slimscope submit profile --model smollm2-135m --wait
    make bench-budget ARGS="--profile profile-0001 --bits 2.25 3.25 4.25 --sparsity 50"
    make bench-budget ARGS="--profile profile-0001 --random 30 --bits 3.25"

Every mix is built alike, block after block on the inputs that the blocks before it, compressed,
give: GPTQ in groups of 64 on symmetric grids, or SparseGPT. Ratios are of perplexities on the same
test windows, with the 95 % interval of a paired bootstrap. Allocations:

    uniform      one format
    error        by the output error of a layer alone, relative
    fisher       by the Fisher estimate
    measured     by the measured divergence, others scaled to it: what runs use
    owl          sparsity by OWL's shares of outliers

--random N builds N mixes at random around the budget: prediction beside measurement.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from backend.budget import Budget
from backend.calibration.second_moments import InputCollector, StatisticsLevel
from backend.checkpoints import Checkpoints
from backend.evaluation.perplexity import window_nlls
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import load
from backend.pruning.config import SDSConfig
from backend.pruning.plan import pruning_plan
from backend.pruning.sds import run_sds
from backend.reporter import SilentReporter
from backend.sensitivity.budget import BudgetSolver
from backend.sensitivity.candidates import Solvers, candidates
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import SensitivityProfile, spearman
from backend.statistics.paired import paired_ratio
from backend.text.slices import calibration_slice, evaluation_slice
from jobs.fields.base_model import resolve_model
from jobs.profile.profiles import profile_of_run

Formats = Mapping[str, Format]
BATCH, SOLVERS, SILENT = 4, Solvers(space="weighted"), SilentReporter()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, help="a run")
    parser.add_argument("--bits", nargs="*", type=float, default=[], help="scales included")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[], help="per cent")
    parser.add_argument("--only", nargs="*", default=["uniform", "error", "fisher", "measured"])
    parser.add_argument("--widths", nargs="*", type=int, help="of the codes in a mix")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--text", default="auto", help="that is measured on")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Trial:
    """A model that is compressed again and again from the same dense weights."""

    def __init__(self, given: argparse.Namespace, model: str) -> None:
        base = resolve_model(model)
        self.given = given
        loaded = load(base.source, "cpu", torch.float32)
        self.model: PreTrainedModel = loaded.model.requires_grad_(False)
        names = [
            base.facts.default_text if x == "auto" else x for x in (given.calibration, given.text)
        ]
        sizes = (given.context, given.seed)
        self.calibration = calibration_slice(
            names[0], loaded.tokenizer, given.segments, *sizes, shared=names[0] == names[1]
        ).input_ids
        self.test = evaluation_slice(
            names[1], loaded.tokenizer, given.windows, given.context
        ).input_ids
        self.dense = {name: p.clone() for name, p in self.model.named_parameters()}

    def losses(self) -> Tensor:
        """Mean loss of each test window of the model as it is."""
        with torch.no_grad():
            return window_nlls(self.model, self.test, 1, SILENT)

    def restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.dense[name])

    @torch.no_grad()
    def quantized(self, formats: Formats) -> Tensor:
        """Losses of the model with these formats."""
        self.restore()
        stream = open_stream(self.model, self.calibration, BATCH)
        for block in range(len(decoder_blocks(self.model))):
            linears = block_linears(self.model, block)
            with InputCollector(linears, StatisticsLevel.GRAM) as collector:
                run_block(self.model, stream, block, stream.hidden)
                inputs = collector.finish()
            for module, x in linears.items():
                form = formats[x.name]
                if form != Format():
                    made = candidates(x.read(), inputs[module], [form], SOLVERS, x.name, print)
                    x.write(made[form])
            stream.advance(run_block(self.model, stream, block, stream.hidden))
        return self.losses()

    def pruned(self, formats: Formats | None, allocation: str, pattern: str) -> Tensor:
        """Losses of the model that a run with SparseGPT makes."""
        self.restore()
        config = SDSConfig.model_validate(
            {"base": "sparsegpt", "until": "first", "control": False, "pattern": pattern,
             "allocation": allocation}
        )  # fmt: skip
        mix = {name: form.pattern for name, form in (formats or {}).items() if form.pattern}
        linears = [
            x for b in range(len(decoder_blocks(self.model)))
            for x in block_linears(self.model, b).values()
        ]  # fmt: skip
        plan = pruning_plan(config, linears, mix)
        with TemporaryDirectory() as folder:
            run_sds(self.model, self.calibration, config, plan, Checkpoints(Path(folder)), SILENT)
        return self.losses()


def solver(
    profile: SensitivityProfile, by: str, pruned: bool, widths: list[int] | None
) -> BudgetSolver:
    """The mixes by one of the estimates."""
    formats = frozenset(
        x for x in profile.formats
        if (x.pattern is not None and x.width is None) == pruned
        and (x.width is None or not widths or x.width.bits in widths)
    )  # fmt: skip
    loss = profile.predicted if by == "measured" else profile.figure(by)
    return BudgetSolver(profile, formats=formats, loss=np.where(np.isnan(loss), np.inf, loss))


def quantized_trials(
    trial: Trial, profile: SensitivityProfile
) -> Iterator[tuple[str, float, Tensor]]:
    """Name, predicted loss and losses of each mix under each budget of bits."""
    given, uniforms = trial.given, [x for x in profile.formats if x.width and not x.pattern]
    for bits in given.bits:
        for by in given.only:
            if by == "uniform":
                same = [x for x in uniforms if abs(x.bits_per_weight(64) - bits) < 0.01]
                if not same:
                    continue
                formats = dict.fromkeys((x.name for x in profile.layers), same[0])
                mix = solver(profile, "measured", False, None).mix(formats)
            else:
                mix = solver(profile, by, False, given.widths).solve(Budget("bits", bits))
            yield f"{bits:g} bits, {by}", mix.loss, trial.quantized(mix.formats)
        for number in range(given.random):
            formats = random_mix(profile, uniforms, bits, Random(number))
            mix = solver(profile, "measured", False, None).mix(formats)
            yield f"{mix.bits:.2f} bits, random {number}", mix.loss, trial.quantized(formats)


def random_mix(
    profile: SensitivityProfile, widths: list[Format], bits: float, random: Random
) -> dict[str, Format]:
    """Widths drawn for each layer so that their mean is about `bits`, give or take half a bit."""
    near = [x for x in widths if x.width and abs(x.bits_per_weight(64) - bits) < 1.5]
    return {x.name: random.choice(near) for x in profile.layers}


def pruned_trials(trial: Trial, profile: SensitivityProfile) -> Iterator[tuple[str, float, Tensor]]:
    """The same of budgets of sparsity."""
    for share in trial.given.sparsity:
        pattern = f"{share:g}%"
        for by in (*trial.given.only, "owl"):
            name, predicted = f"{pattern}, {by}", math.nan
            if by in ("uniform", "owl"):
                yield name, predicted, trial.pruned(None, by, pattern)
            else:
                mix = solver(profile, by, True, None).solve(Budget("sparsity", share / 100))
                yield name, mix.loss, trial.pruned(mix.formats, f"budget:{pattern}", pattern)


def main() -> None:
    given = arguments()
    profile = profile_of_run(given.profile)
    trial = Trial(given, profile.model)
    dense = trial.losses()
    table = Table("mix", "perplexity", "of dense", "of uniform", "predicted", title=profile.model)
    rows = [{"mix": "dense", "perplexity": math.exp(dense.mean())}]
    table.add_row("dense", f"{rows[0]['perplexity']:.2f}")
    uniform, measured = None, []
    for trials in (quantized_trials(trial, profile), pruned_trials(trial, profile)):
        for name, predicted, losses in trials:
            uniform = losses if name.endswith("uniform") else uniform
            ratio, beside = paired_ratio(losses, dense), None
            if uniform is not None and losses is not uniform:
                beside = paired_ratio(losses, uniform)
            assert ratio is not None
            measured.append((predicted, math.log(ratio.value)))
            said = f"{beside.value:.3f} ({beside.low:.3f} to {beside.high:.3f})" if beside else ""
            row = [
                f"{math.exp(losses.mean()):.2f}",
                f"{ratio.value:.3f}",
                said,
                f"{math.exp(predicted):.3f}",
            ]
            table.add_row(name, *row)
            print(name, *row, flush=True)
            rows.append({"mix": name, "losses": losses.tolist(), "predicted": predicted})
    Console(width=120).print(table)
    if given.random:
        both = np.array(measured)
        print(f"rank correlation {spearman(both[:, 0], both[:, 1]):.3f}")
        print(f"measured over predicted loss {np.median(both[:, 1] / both[:, 0]):.3f} (median)")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
