"""Drafters of every arm, trained on the same answers, decoding the same prompts.

Two questions, two tables. Which arm accepts most after equal steps (several seeds), and what is
each worth in time on this machine, beside prompt lookup and the plain loop of transformers? They
are trained in --precision and decode in what is fastest here, as the jobs do. Every arm decodes in
the trees that are the default, and the first table in a static one of --nodes.

make bench-amphista
make bench-amphista ARGS="--model smollm2-135m --answers 512 --steps 0 --minutes 5 --seeds 1"
make bench-amphista ARGS="--arms Amphista 'Encoder only' --threads 1"
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from backend.checkpoints import Checkpoints
from backend.methods.amphista.checkpoint import Amphista, BaseFingerprint, pack
from backend.methods.amphista.config import ARMS, DrafterConfig, TrainingConfig
from backend.methods.amphista.data.hidden_state_cache import (
    HiddenStateCache,
    SequenceSources,
    collect,
    draft_vocabulary,
)
from backend.methods.amphista.data.prompts import PromptRequest, prompts_for
from backend.methods.amphista.decoding.benchmark import (
    VANILLA,
    Answers,
    DecoderSummary,
    decoders_of,
    summarise,
    time_decoders,
)
from backend.methods.amphista.decoding.cost_model import measure_costs
from backend.methods.amphista.decoding.proposers import (
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    TreeProposer,
)
from backend.methods.amphista.drafter.initialization import FITTED
from backend.methods.amphista.drafter.registry import build_drafter
from backend.methods.amphista.generate import make_proposer
from backend.methods.amphista.target_model import TargetModel
from backend.methods.amphista.training.trainer import DrafterTrainer
from backend.methods.amphista.tree import grow
from backend.models.loading import LoadedModel, load
from backend.native.model import decoding_dtype
from backend.reporter import SilentReporter
from backend.settings import available_threads
from backend.text.prompt_ids import end_ids, prompt_ids
from backend.text.prompts import BUILT_IN, SELF, STORIES, benchmark_prompts

SILENT = SilentReporter()
T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided 95 %, by seeds


@dataclass
class Entry:
    """One arm and seed: the drafter, how it was made, and what held-out answers promise of it."""

    parameters: int
    saved: Amphista
    proposer: TreeProposer
    top1: list[float]
    promised: float
    steps: int
    seconds: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--answers", default=512, type=int)
    parser.add_argument("--answer-tokens", default=96, type=int)
    parser.add_argument("--steps", default=400, type=int, help="0: --minutes counts")
    parser.add_argument("--minutes", default=5.0, type=float)
    parser.add_argument("--batch", default=8, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--nodes", default=8, type=int, help="of every arm's own tree")
    parser.add_argument("--prompts", default=24, type=int)
    parser.add_argument("--set", default="", help="of prompts, such as file:NAME.jsonl")
    parser.add_argument("--new-tokens", default=64, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--arms", default=[*ARMS], nargs="+", choices=[*ARMS])
    parser.add_argument("--threads", default=0, type=int, help="0: all")
    parser.add_argument("--folder", type=Path, help="where the answers are kept")
    return parser.parse_args()


def opened_for_decoding(model: str, target: TargetModel) -> TargetModel:
    """The target in the precision it decodes fastest in."""
    fastest = decoding_dtype("auto", target.device, type(target.model).__name__)
    dtype = getattr(torch, fastest)
    if dtype == target.dtype:
        return target
    return TargetModel(load(model, "cpu", dtype).model.requires_grad_(False))


def answers(
    chosen: argparse.Namespace, base: LoadedModel, target: TargetModel
) -> tuple[HiddenStateCache, HiddenStateCache]:
    """The base's own greedy answers; those in --folder are used again."""
    sets = (STORIES,) if base.facts.default_text == STORIES else (BUILT_IN, SELF)
    count, limit = chosen.answers, chosen.answer_tokens
    checkpoints = Checkpoints(chosen.folder / "answers")
    wanted = PromptRequest(sets, count, count // 10, limit)
    prompts = prompts_for(target, base.tokenizer, wanted, checkpoints, SILENT)
    ends = end_ids(base.tokenizer, base.model.generation_config)
    return collect(target, SequenceSources(*prompts, limit=limit, ends=ends), checkpoints, SILENT)


def train(
    arm: str,
    seed: int,
    chosen: argparse.Namespace,
    target: TargetModel,
    decoding: TargetModel,
    corpora: tuple[HiddenStateCache, HiddenStateCache],
) -> Entry:
    """A trained drafter with its own best tree."""
    torch.manual_seed(seed)
    vocabulary = draft_vocabulary(corpora[0], target.vocabulary, DrafterConfig().draft_vocabulary)
    drafter = build_drafter(DrafterConfig(**ARMS[arm]), target, vocabulary)
    drafter.initialize(target, corpora[0].spread(FITTED), fitted=True)
    minutes = 0.0 if chosen.steps else chosen.minutes
    config = TrainingConfig(minutes=minutes, steps=chosen.steps or 1, batch=chosen.batch)
    with TemporaryDirectory() as scratch:
        work = DrafterTrainer(
            drafter, target, *corpora, config, seed, Checkpoints(Path(scratch)), SILENT
        )
        began = time.perf_counter()
        judged = work.run()
    growth, facts = grow(judged.answers), BaseFingerprint.of(target, chosen.model)
    saved = pack(drafter, facts, growth, {}, {}, 0)
    proposer = make_proposer(decoding, saved, chosen.nodes, least=2)
    assert isinstance(proposer, TreeProposer)
    return Entry(
        drafter.parameter_count(),
        saved,
        proposer,
        judged.top(1),
        judged.accepted(chosen.nodes),
        work.schedule.steps,
        time.perf_counter() - began,
    )


def compete(
    arms: Mapping[str, Proposer],
    chosen: argparse.Namespace,
    base: LoadedModel,
    target: TargetModel,
    rounds: int,
) -> dict[str, DecoderSummary]:
    """Every arm's figures over the benchmark's prompts."""
    suits = chosen.set or (STORIES if base.facts.default_text == STORIES else BUILT_IN)
    ends, answered = end_ids(base.tokenizer, base.model.generation_config), list[Answers]()
    for number, prompt in enumerate(benchmark_prompts(suits, chosen.prompts)):
        ids = prompt_ids(prompt.text, base.tokenizer)
        decoders = decoders_of(target, arms)
        found = time_decoders(decoders, ids, chosen.new_tokens, ends, rounds, SILENT, number)
        answered.append(found)
    return {name: summarise(name, answered) for name in arms}


def plain_ratio(chosen: argparse.Namespace, base: LoadedModel, target: TargetModel) -> float:
    """Seconds of `generate` of transformers over those of our own vanilla loop, same tokens; the
    best of each."""
    suits = STORIES if base.facts.default_text == STORIES else BUILT_IN
    ids = torch.tensor([prompt_ids(benchmark_prompts(suits, 1)[0].text, base.tokenizer)])
    mask, taken = torch.ones_like(ids), list[float]()
    ours: list[float] = []
    for _ in range(chosen.rounds + 1):
        began = time.perf_counter()
        target.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=chosen.new_tokens,
            min_new_tokens=chosen.new_tokens, pad_token_id=0,
        )  # fmt: skip
        taken.append(time.perf_counter() - began)
        vanilla = decoders_of(target, {VANILLA: NoDraft()})
        one = time_decoders(vanilla, ids[0].tolist(), chosen.new_tokens, (), 1, SILENT)
        ours += one[VANILLA].seconds
    return min(taken) / min(ours)


def accepted_table(
    entries: Mapping[str, list[Entry]], found: Mapping[str, list[DecoderSummary]], seeds: int
) -> Table:
    """Mean accepted length over seeds, and Amphista's lead with its 95 % interval."""
    made = Table("arm", "parameters", "steps", "s", "top-1 of heads", "promised", "accepted ± sd",
                 "Amphista − it, 95 %", "texts alike")  # fmt: skip
    first = [summary.accepted for summary in found["Amphista"]] if "Amphista" in found else []
    for arm, summaries in found.items():
        values, mine = [s.accepted for s in summaries], entries[arm]
        spread = f" ± {stdev(values):.3f}" if seeds > 1 else ""
        lead = [a - b for a, b in zip(first, values, strict=False)]
        gap = f"{mean(lead):+.3f}" if lead and arm != "Amphista" else ""
        if gap and seeds in T95:
            gap += f" ± {T95[seeds] * stdev(lead) / seeds**0.5:.3f}"
        tops = " ".join(f"{mean(e.top1[k] for e in mine):.3f}" for k in range(len(mine[0].top1)))
        alike = sum(s.same for s in summaries), sum(s.prompts for s in summaries)
        made.add_row(arm, f"{mine[0].parameters:,}", str(mine[0].steps),
                     f"{mean(e.seconds for e in mine):.0f}", tops,
                     f"{mean(e.promised for e in mine):.3f}", f"{mean(values):.3f}{spread}", gap,
                     f"{alike[0]}/{alike[1]}")  # fmt: skip
    return made


def speed_table(found: Mapping[str, DecoderSummary]) -> Table:
    """Speed-ups, and where the time of a pass goes."""
    made = Table("decoder", "tokens/s", "speed-up (range)", "accepted", "break-even",
                 "speed-up ÷ accepted", "draft ms", "verify ms", "rest ms")  # fmt: skip
    for name, s in found.items():
        ms = {part: 1000 * seconds for part, seconds in s.parts.items()}
        up = s.speed_up
        made.add_row(name, f"{s.speed.value:.1f}",
                     f"{up.value:.2f} ({up.lowest:.2f}–{up.highest:.2f})", f"{s.accepted:.2f}",
                     f"{s.break_even:.2f}", f"{up.value / s.accepted:.2f}", f"{ms['draft']:.2f}",
                     f"{ms['verify']:.2f}", f"{ms['accept'] + ms['cache']:.2f}")  # fmt: skip
    return made


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads or available_threads())
    with TemporaryDirectory() as scratch:
        chosen.folder = chosen.folder or Path(scratch)
        base = load(chosen.model, "cpu", getattr(torch, chosen.precision))
        target = TargetModel(base.model.requires_grad_(False))
        decoding = opened_for_decoding(chosen.model, target)
        corpora = answers(chosen, base, target)
        print(f"{sum(corpora[0].lengths):,} tokens to learn from", file=sys.stderr, flush=True)
        entries: dict[str, list[Entry]] = {arm: [] for arm in chosen.arms}
        found: dict[str, list[DecoderSummary]] = {arm: [] for arm in entries}
        for seed in range(chosen.seeds):
            for arm, made in entries.items():
                made.append(train(arm, seed, chosen, target, decoding, corpora))
                arms = {VANILLA: NoDraft(), arm: made[-1].proposer}
                found[arm].append(compete(arms, chosen, base, decoding, rounds=1)[arm])
                print(arm, seed, found[arm][-1].accepted, file=sys.stderr, flush=True)
        arms = {VANILLA: NoDraft(), "Prompt lookup": PromptLookup()}
        length = measure_costs(decoding).lookup_length
        for arm, made in entries.items():
            arms[arm] = make_proposer(decoding, made[0].saved, least=2)
            arms[f"Prompt lookup + {arm}"] = PromptLookupFirst(arms[arm], length)
        speeds = compete(arms, chosen, base, decoding, chosen.rounds)
        ratio = plain_ratio(chosen, base, decoding)
    console = Console(width=150)
    console.print(accepted_table(entries, found, chosen.seeds), speed_table(speeds))
    console.print(f"generate of transformers takes {ratio:.2f} times as long as our vanilla loop.")
    print(json.dumps({
        "accepted": {arm: [s.accepted for s in each] for arm, each in found.items()},
        "speed_up": {name: s.speed_up.value for name, s in speeds.items()},
        "generate_ratio": ratio,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
