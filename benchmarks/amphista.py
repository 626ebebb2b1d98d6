"""Drafters of every arm, trained on the same answers for equal processor time, walked and decoded.

Two questions, two tables. What does each arm accept: exact walks over the base's own greedy answers
to the prompts of every set in --sets, with static trees (grown on the other half of the answers)
and with the default trees, for several seeds? And what is that worth in time on this machine,
beside prompt lookup, the native decoder alone, the plain loop of transformers and llama.cpp?

They are trained in --precision and decode in what is fastest here, as the jobs do. Training time is
that of the processor, so that other work on the machine takes nothing from an arm: the pace of each
is measured once, and the number of steps is --minutes of it. With --folder, what has been trained
and walked is kept, and the same command goes on where it was stopped.

make bench-amphista
make bench-amphista ARGS="--model smollm2-135m --answers 512 --steps 0 --minutes 5 --seeds 1"
make bench-amphista ARGS="--arms Amphista 'Encoder only' --threads 1"
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from backend.checkpoints import Checkpoints
from backend.decoding.benchmark import (
    VANILLA,
    Answers,
    Decoder,
    DecoderSummary,
    LlamaCppDecoder,
    decoders_of,
    summarize,
    time_decoders,
)
from backend.decoding.cost_model import CostModel, measure_costs
from backend.decoding.draft_tree import (
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    grow,
    walked_lengths,
)
from backend.decoding.native.model import decoding_dtype
from backend.decoding.target_model import TargetModel
from backend.drafters.adapted import FIT_TOKENS
from backend.drafters.checkpoint import Amphista, BaseFingerprint, pack
from backend.drafters.config import ARMS, DrafterConfig, TrainingConfig
from backend.drafters.exact_walk import walk_answers
from backend.drafters.generate import TreeProposer
from backend.drafters.registry import Drafter, build_drafter
from backend.drafters.training.hidden_state_cache import (
    CachedSequence,
    HiddenStateCache,
    SequenceSources,
    collect,
    draft_vocabulary,
)
from backend.drafters.training.loss import HeadAccuracy, sequence_ranks
from backend.drafters.training.prompts import PromptRequest, prompts_for
from backend.drafters.training.trainer import PACE_SKIPPED, PACE_STEPS, DrafterTrainer
from backend.models.loading import LoadedModel, load
from backend.reporter import SilentReporter
from backend.settings import available_threads
from backend.statistics.paired import mean_interval
from backend.text.chat_template import end_ids, prompt_ids
from backend.text.prompts import BUILT_IN, SELF, STORIES, benchmark_prompts
from benchmarks.peers import llama

SILENT = SilentReporter()
CONTROLS = {"Amphista": "Staged adaptation only"}
SIZES = (4, 8, 16)  # nodes of the static trees
WATCHED, SPARE = 8, 16  # held-out answers during training; prompts of the training sets set aside
RESULT = "result.json"
DECISIVE = (  # arguments that a kept result depends on
    "model",
    "precision",
    "answers",
    "answer_tokens",
    "steps",
    "minutes",
    "batch",
    "sets",
    "judged",
    "longest",
)


@dataclass(frozen=True)
class Outcome:
    """One trained drafter: accepted length for each prompt set and tree, top-1 accuracy of the
    heads, and that of a head where those before it were right."""

    parameters: int
    steps: int
    seconds: float
    accepted: dict[str, list[float]]
    top1: list[float]
    chained: list[float]


@dataclass
class Corpora:
    """The base's greedy answers: to learn from, and to be judged by. `sets`: name of a prompt set
    -> its prompts, each with the index of its answer in `judged`."""

    learned: HiddenStateCache
    judged: HiddenStateCache
    sets: dict[str, dict[tuple[int, ...], int]]

    def answers(self, name: str) -> Iterator[CachedSequence]:
        """The answers to the prompts of a set."""
        return (self.judged[index] for index in self.sets[name].values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--answers", default=512, type=int)
    parser.add_argument("--answer-tokens", default=96, type=int)
    parser.add_argument("--steps", default=400, type=int, help="0: --minutes counts")
    parser.add_argument("--minutes", default=5.0, type=float, help="of processor time")
    parser.add_argument("--batch", default=8, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--sets", nargs="+", help="prompts to judge by, such as file:NAME.jsonl")
    parser.add_argument("--judged", default=[80], nargs="+", type=int, help="prompts of each set")
    parser.add_argument("--longest", default=700, type=int, help="tokens of a prompt")
    parser.add_argument("--prompts", default=24, type=int, help="to decode, of the first set")
    parser.add_argument("--new-tokens", default=0, type=int, help="0: --answer-tokens")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--gguf", type=Path, help="of the same model, for llama.cpp")
    parser.add_argument("--arms", default=[*ARMS], nargs="+", choices=[*ARMS])
    parser.add_argument("--threads", default=0, type=int, help="0: all")
    parser.add_argument("--folder", type=Path, help="where answers and drafters are kept")
    chosen = parser.parse_args()
    chosen.new_tokens = chosen.new_tokens or chosen.answer_tokens
    return chosen


def opened_for_decoding(model: str, target: TargetModel) -> TargetModel:
    """The target in the precision it decodes fastest in."""
    fastest = decoding_dtype("auto", target.device, type(target.model).__name__)
    dtype = getattr(torch, fastest)
    if dtype == target.dtype:
        return target
    return TargetModel(load(model, "cpu", dtype).model.requires_grad_(False))


def collected(chosen: argparse.Namespace, base: LoadedModel, target: TargetModel) -> Corpora:
    """The base's own greedy answers; those in --folder are used again."""
    stories = base.facts.default_text == STORIES
    limit, ends = chosen.answer_tokens, end_ids(base.tokenizer, base.model.generation_config)
    wanted = PromptRequest(
        (STORIES,) if stories else (BUILT_IN, SELF), chosen.answers, SPARE, limit
    )
    checkpoints = Checkpoints(chosen.folder / "prompts")
    learned, _ = prompts_for(target, base.tokenizer, wanted, checkpoints, SILENT)
    asked: dict[str, list[tuple[int, ...]]] = {}
    for name, count in zip(chosen.sets, cycle(chosen.judged), strict=False):
        prompts = (prompt_ids(x.text, base.tokenizer) for x in benchmark_prompts(name, count))
        asked[name] = [tuple(ids) for ids in prompts if len(ids) < chosen.longest]
    judged = [list(ids) for prompts in asked.values() for ids in prompts]
    sources = SequenceSources(learned, judged, limit, ends)
    made = collect(target, sources, Checkpoints(chosen.folder / "states"), SILENT)
    answers = [(made[1][index], index) for index in range(len(made[1]))]
    places = {tuple(x.ids[: x.start].tolist()): index for x, index in answers}
    sets = {name: {ids: places[ids] for ids in prompts} for name, prompts in asked.items()}
    return Corpora(*made, sets)


class Bench:
    """The drafters of one command."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.base = load(chosen.model, "cpu", getattr(torch, chosen.precision))
        self.target = TargetModel(self.base.model.requires_grad_(False))
        stories = self.base.facts.default_text == STORIES
        chosen.sets = chosen.sets or [STORIES if stories else BUILT_IN]
        self._claim()
        self.decoding = opened_for_decoding(chosen.model, self.target)
        self.corpora = collected(chosen, self.base, self.target)
        self.vocabulary = draft_vocabulary(
            self.corpora.learned, self.target.vocabulary, DrafterConfig().draft_vocabulary
        )
        self.costs: CostModel | None = None

    def _claim(self) -> None:
        """Refuse a folder that was made with other arguments."""
        mine, file = (
            {n: vars(self.chosen)[n] for n in DECISIVE},
            self.chosen.folder / "arguments.json",
        )
        if file.exists() and (theirs := json.loads(file.read_text())) != mine:
            differing = ", ".join(
                f"--{n.replace('_', '-')}" for n in DECISIVE if theirs[n] != mine[n]
            )
            sys.exit(f"{file.parent} was made with other {differing}. Choose another folder.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(mine))

    # training --------------------------------------------------------------------------------

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Of a drafter, trained if that was not done before."""
        folder = self.folder(arm, seed)
        if not (folder / RESULT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            outcome = self._trained(arm, seed, folder)
            (folder / RESULT).write_text(json.dumps(asdict(outcome)))
        return Outcome(**json.loads((folder / RESULT).read_text()))

    def folder(self, arm: str, seed: int) -> Path:
        """Where a drafter is kept."""
        root: Path = self.chosen.folder
        return root / arm.replace(",", "").replace(" ", "-") / str(seed)

    def _trained(self, arm: str, seed: int, folder: Path) -> Outcome:
        steps = self.chosen.steps or self._steps(arm)
        began = time.process_time()
        drafter = self._train(arm, seed, steps)
        seconds = time.process_time() - began
        ranks = {
            name: [sequence_ranks(drafter, self.target, x) for x in self.corpora.answers(name)]
            for name in self.chosen.sets
        }
        every = HeadAccuracy([rows for found in ranks.values() for rows in found if len(rows)])
        facts = BaseFingerprint.of(self.target, self.chosen.model)
        saved = pack(drafter, facts, grow(every.answers), {}, {}, 0)
        saved.save(folder)
        accepted = {name: walked_lengths(found, SIZES) for name, found in ranks.items()}
        proposer = self.proposer(saved)
        for name, lengths in accepted.items():
            lengths.append(walk_answers(proposer, self.corpora.answers(name)).accepted_length)
        return Outcome(
            drafter.parameter_count(), steps, seconds, accepted, every.top(1), every.chained()
        )

    def _steps(self, arm: str) -> int:
        """What fits into the time, by the pace of this arm's first steps."""
        file = self.folder(arm, 0).parent / "pace.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            seconds: list[float] = []
            self._train(arm, 0, PACE_STEPS, seconds)
            file.write_text(json.dumps(mean(seconds[PACE_SKIPPED:])))
        pace: float = json.loads(file.read_text())
        return max(1, round(60 * self.chosen.minutes / pace))

    def _train(
        self, arm: str, seed: int, steps: int, seconds: list[float] | None = None
    ) -> Drafter:
        """A drafter after so many steps; the processor time of each is appended to `seconds`."""
        torch.manual_seed(seed)
        drafter = build_drafter(DrafterConfig(**ARMS[arm]), self.target, self.vocabulary)
        drafter.initialize(self.target, self.corpora.learned.spread(FIT_TOKENS))
        config = TrainingConfig(minutes=0, steps=steps, batch=self.chosen.batch)
        watched = [self.corpora.judged[n] for n in range(min(WATCHED, len(self.corpora.judged)))]
        with TemporaryDirectory() as scratch:
            work = DrafterTrainer(
                drafter,
                self.target,
                self.corpora.learned,
                watched,
                config,
                seed,
                Checkpoints(Path(scratch)),
                SILENT,
            )
            if seconds is None:
                work.run()
            else:
                for _ in range(steps):
                    began = time.process_time()
                    work.update()
                    seconds.append(time.process_time() - began)
        return drafter

    # decoding --------------------------------------------------------------------------------

    def proposer(self, saved: Amphista) -> Proposer:
        """A drafter with the default trees; the costs of passes are measured once."""
        drafter = saved.bind(self.decoding)
        if self.costs is None:
            self.costs = measure_costs(self.decoding)
        return TreeProposer(drafter, self.decoding, self.costs.dynamic_tree())

    def drafted(self) -> dict[str, Proposer]:
        """Every source of drafts, by the name of its row; drafters are those of the first seed."""
        found: dict[str, Proposer] = {}
        for arm in self.chosen.arms:
            found[arm] = self.proposer(Amphista.load(self.folder(arm, 0)))
        assert self.costs
        length = self.costs.lookup_length
        first = {f"Prompt lookup + {arm}": PromptLookupFirst(p, length) for arm, p in found.items()}
        return {VANILLA: NoDraft(), "Prompt lookup": PromptLookup(length), **found, **first}

    @property
    def prompts(self) -> dict[tuple[int, ...], int]:
        """Those to decode; see `Corpora`."""
        first = self.corpora.sets[self.chosen.sets[0]]
        return dict([*first.items()][: self.chosen.prompts])

    def predicted(self, proposers: Mapping[str, Proposer]) -> dict[str, float]:
        """Accepted length on the answers to the prompts that are decoded, by walks."""
        answers = [self.corpora.judged[index] for index in self.prompts.values()]
        walks = {row: walk_answers(proposer, answers) for row, proposer in proposers.items()}
        return {row: walk.accepted_length for row, walk in walks.items()}

    def decoded(self, arms: Mapping[str, Decoder]) -> dict[str, DecoderSummary]:
        """Every arm's figures over the prompts to decode."""
        chosen, answered = self.chosen, list[Answers]()
        ends = end_ids(self.base.tokenizer, self.base.model.generation_config)
        limit, rounds = chosen.new_tokens, chosen.rounds
        for number, ids in enumerate(self.prompts):
            answered.append(time_decoders(arms, ids, limit, ends, rounds, SILENT, number))
        return {name: summarize(name, answered) for name in arms}

    def plain_ratio(self) -> float:
        """Seconds of `generate` of transformers over those of our own vanilla loop, same tokens;
        the best of each."""
        chosen, target = self.chosen, self.decoding
        ids = torch.tensor([[*next(iter(self.prompts))]])
        mask, taken = torch.ones_like(ids), list[float]()
        ours: list[float] = []
        for _ in range(chosen.rounds + 1):
            began = time.perf_counter()
            target.model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=chosen.new_tokens,
                min_new_tokens=chosen.new_tokens,
                pad_token_id=0,
            )
            taken.append(time.perf_counter() - began)
            vanilla = decoders_of(target, {VANILLA: NoDraft()})
            one = time_decoders(vanilla, ids[0].tolist(), chosen.new_tokens, (), 1, SILENT)
            ours += one[VANILLA].seconds
        return min(taken) / min(ours)


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and its 95 % interval over seeds; the mean alone where there is one seed."""
    text = f"{mean(values):{sign}.3f}"
    if len(values) > 1:
        low, high = mean_interval(values)
        text += f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return text


def accepted_table(found: Mapping[str, list[Outcome]], name: str) -> Table:
    """Accepted length on a set of prompts: mean over seeds with the standard deviation."""
    made = Table(
        "arm",
        "parameters",
        "steps",
        "s",
        "top-1 of heads",
        "all before right",
        *(f"{n} nodes" for n in SIZES),
        "default trees",
        title=name,
    )
    for arm, outcomes in found.items():
        one = outcomes[0]
        tops = (_mean_row([o.top1 for o in outcomes]), _mean_row([o.chained for o in outcomes]))
        trees = zip(*(o.accepted[name] for o in outcomes), strict=True)
        spread = [f"{mean(v):.3f}" + (f" ± {stdev(v):.3f}" if len(v) > 1 else "") for v in trees]
        made.add_row(
            arm,
            f"{one.parameters:,}",
            str(one.steps),
            f"{mean(o.seconds for o in outcomes):.0f}",
            *tops,
            *spread,
        )
    return made


def _mean_row(rows: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{mean(column):.3f}" for column in zip(*rows, strict=True))


def control_table(found: Mapping[str, list[Outcome]]) -> Table:
    """Differences in accepted length, with their 95 % interval over seeds."""
    made = Table("difference", "prompts", *(f"{n} nodes" for n in SIZES), "default trees")
    pairs = [(arm, other) for arm, other in CONTROLS.items() if {arm, other} <= found.keys()]
    pairs += [(arm, "Amphista") for arm in found if arm != "Amphista" and "Amphista" in found]
    for arm, other in pairs:
        for name in found[arm][0].accepted:
            rows = zip(found[arm], found[other], strict=True)
            leads = [
                [a - b for a, b in zip(x.accepted[name], y.accepted[name], strict=True)]
                for x, y in rows
            ]
            made.add_row(
                f"{arm} − {other}", name, *(with_interval(c, "+") for c in zip(*leads, strict=True))
            )
    return made


def speed_table(found: Mapping[str, DecoderSummary], predicted: Mapping[str, float]) -> Table:
    """Speed-ups, and where the time of a pass goes."""
    made = Table(
        "decoder",
        "tokens/s",
        "speed-up (range)",
        "accepted",
        "predicted",
        "break-even",
        "draft ms",
        "verify ms",
        "rest ms",
        "texts alike",
    )
    for name, s in found.items():
        ms = {part: 1000 * seconds for part, seconds in s.parts.items()}
        up = s.speed_up
        made.add_row(
            name,
            f"{s.speed.value:.1f}",
            f"{up.value:.2f} ({up.lowest:.2f}–{up.highest:.2f})",
            f"{s.accepted:.2f}",
            f"{predicted[name]:.2f}" if name in predicted else "",
            f"{s.break_even:.2f}",
            f"{ms['draft']:.2f}",
            f"{ms['verify']:.2f}",
            f"{ms['accept'] + ms['cache']:.2f}",
            f"{s.same}/{s.prompts}",
        )
    return made


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads or available_threads())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        chosen.folder = chosen.folder or scratch
        bench = Bench(chosen)
        print(f"{sum(bench.corpora.learned.lengths):,} tokens to learn from", file=sys.stderr)
        found: dict[str, list[Outcome]] = {arm: [] for arm in chosen.arms}
        for seed in range(chosen.seeds):
            for arm, outcomes in found.items():
                outcomes.append(bench.outcome(arm, seed))
                print(arm, seed, outcomes[-1].accepted, file=sys.stderr, flush=True)
        proposers = bench.drafted()
        predicted = bench.predicted(proposers)
        decoders = decoders_of(bench.decoding, proposers)
        if chosen.gguf:
            room = chosen.longest + chosen.new_tokens
            for name, path in llama.formats(chosen.gguf, scratch, torch.get_num_threads()):
                decoders[f"llama.cpp, {name}"] = LlamaCppDecoder(path, room)
        speeds, ratio = bench.decoded(decoders), bench.plain_ratio()
    console = Console(width=170)
    console.print(*(accepted_table(found, name) for name in chosen.sets), control_table(found))
    console.print(speed_table(speeds, predicted))
    console.print(f"generate of transformers takes {ratio:.2f} times as long as our vanilla loop.")
    print(
        json.dumps(
            {
                "accepted": {arm: [o.accepted for o in each] for arm, each in found.items()},
                "predicted": predicted,
                "decoded": {name: s.accepted for name, s in speeds.items()},
                "speed_up": {name: s.speed_up.value for name, s in speeds.items()},
                "generate_ratio": ratio,
            }
        )
    )


if __name__ == "__main__":
    main()
