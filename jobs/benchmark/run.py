"""Benchmark job: decoders answer the same prompts in turn on this machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from heapq import nlargest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backend.decoding.benchmark import (
    VANILLA,
    Answers,
    Decoder,
    DecoderSummary,
    LlamaCppDecoder,
    TargetDecoder,
    decoders_of,
    packed,
    summarize,
    time_decoders,
    unpacked,
)
from backend.decoding.cost_model import SIZES as COST_SIZES
from backend.decoding.cost_model import measure_costs
from backend.decoding.draft_tree import (
    DynamicTree,
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    StaticTree,
)
from backend.decoding.draft_tree import Path as TreePath
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista
from backend.drafters.generate import TreeProposer, describe_trees, make_proposer
from backend.errors import ConfigError
from backend.export.gguf.writing import write_gguf
from backend.metric_key import MetricKey
from backend.models.loading import LoadedModel
from backend.models.sources.catalog import materialize
from backend.reporter import REPLAY, SilentReporter, stop_if_asked
from backend.text.chat_template import end_ids, tokenize_prompts
from backend.text.prompts import Prompt, benchmark_prompts
from jobs.benchmark.kind import BenchmarkJob, work
from jobs.benchmark.report import (
    COMBINED,
    LLAMA_CPP,
    LOOKUP,
    PYTORCH,
    DecoderReport,
    decoder_reports,
    speed_up_of,
    verdicts,
)
from jobs.fields.drafters import drafter_folder, parse_drafters
from jobs.fields.gguf import exported_type, parse_types
from jobs.fields.models import resolve_model
from jobs.fields.text import prompt_facts, prompt_set
from jobs.metrics import (
    ACCEPTED_LENGTH,
    BREAK_EVEN,
    BYTES_PER_TOKEN,
    COST,
    PASS_MS,
    SAME_TEXT,
    SPEED_UP,
    TOKENS_PER_SECOND,
)
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_model
from jobs.runtime.progress import Phases

TREES = "trees"  # checkpoint with the chosen tree sizes
MAX_PATHS = 16  # paths recorded for a dynamic tree


class DecodingBenchmark:
    """A running benchmark: model, drafters, prompts and phase."""

    def __init__(
        self, config: BenchmarkJob, loaded: LoadedModel, target: TargetModel, context: JobContext
    ) -> None:
        self.config, self.loaded, self.target, self.context = config, loaded, target, context
        self.prompts = self._prompts()
        self.drafters = {
            job.run: Amphista.load(drafter_folder(job))
            for job in parse_drafters(config.drafters, config.model, "drafters")
        }
        self.phase = Phases(context, {"compare": config.count}).phase("compare")

    def compare(self) -> None:
        """Time all decoders and record a report for each."""
        decoders = self._decoders()
        answers = self._answers(decoders)
        tasks = [prompt.task for prompt, _ in self.prompts]
        for name, decoder in decoders.items():
            by_task = {
                task: summarize(name, [a for a, t in zip(answers, tasks, strict=True) if t == task])
                for task in dict.fromkeys(tasks)
            }
            proposer = decoder.proposer
            summary = summarize(name, answers)
            drafter = self.drafters.get(name.removesuffix(COMBINED))
            paths = _paths(proposer, summary.hits)
            speed, up = summary.speed, summary.speed_up
            report = DecoderReport(
                name,
                kind=drafter.arm if drafter else "",
                nodes=proposer.nodes,
                tree=describe_trees(proposer),
                speed=speed.value,
                speed_up=up.value,
                accepted=summary.accepted,
                break_even=summary.break_even,
                same=summary.same / summary.prompts,
                prompts=summary.prompts,
                first_difference=summary.first_difference,
                ranges={
                    str(TOKENS_PER_SECOND): (speed.lowest, speed.highest),
                    str(SPEED_UP): (up.lowest, up.highest),
                    **{
                        str(speed_up_of(task)): (s.speed_up.lowest, s.speed_up.highest)
                        for task, s in by_task.items()
                    },
                },
                lengths=dict(summary.lengths),
                hits={path: summary.hits.get(path, 0.0) for path in paths},
                milliseconds={part: 1000 * seconds for part, seconds in summary.parts.items()},
                tasks={task: (s.speed_up.value, s.accepted) for task, s in by_task.items()},
            )
            self._record(report, by_task)

    # decoders --------------------------------------------------------------------------------

    def _decoders(self) -> dict[str, Decoder]:
        """Return the decoders by name, vanilla first. Draft sizes are in a checkpoint, so that a
        resumed run uses the same."""
        config, target = self.config, self.target
        proposers: dict[str, Proposer] = {VANILLA: NoDraft()}
        checkpoint = self.context.checkpoints.find(TREES)
        if checkpoint:
            sizes: dict[str, Any] = json.loads((checkpoint / "sizes.json").read_text())
        else:
            costs = measure_costs(target)
            for nodes in COST_SIZES:
                key = MetricKey(COST, series="verify", axis="nodes")
                self.context.metric(key, costs.ratio(nodes), nodes)
            sizes = {LOOKUP: costs.lookup_length}
        lookup = PromptLookup(sizes[LOOKUP])
        if config.lookup:
            proposers[LOOKUP] = lookup
        for name, drafter in self.drafters.items():
            tree_size = sizes.get(name, config.nodes)
            tree = DynamicTree(**tree_size) if isinstance(tree_size, dict) else tree_size
            proposer = make_proposer(target, drafter, tree, least=2)
            policy = proposer.policy if isinstance(proposer, TreeProposer) else None
            sizes[name] = asdict(policy) if isinstance(policy, DynamicTree) else proposer.nodes
            self.context.log(f"{name}, {drafter.arm}: {describe_trees(proposer)}.")
            proposers[name] = proposer
            if isinstance(proposer, TreeProposer):
                proposers[name + COMBINED] = PromptLookupFirst(proposer, lookup.length)
        if not checkpoint:
            with self.context.checkpoints.write(TREES) as folder:
                (folder / "sizes.json").write_text(json.dumps(sizes))
        decoders = decoders_of(self.target, proposers)
        if self.config.pytorch and self.target.native:
            pytorch_target = TargetModel(self.loaded.model, native=False)
            decoders[PYTORCH] = TargetDecoder(pytorch_target, NoDraft())
        return decoders | self._llama_cpp()

    def _llama_cpp(self) -> dict[str, Decoder]:
        """Load llama.cpp with temporary GGUF files of the model, one decoder for each type."""
        decoders = dict[str, Decoder]()
        longest = max(len(ids) for _, ids in self.prompts) + self.config.max_new_tokens
        model = resolve_model(self.config.model)
        folder = Path(model.source) if model.packed else materialize(model.source)
        for requested_type in parse_types(self.config.llama_cpp):
            gguf_type = exported_type(requested_type, model, "llama_cpp")
            with TemporaryDirectory(dir=self.context.folder) as scratch:
                file = Path(scratch) / f"{gguf_type}.gguf"
                write_gguf(
                    folder, file, gguf_type, model.packed, model.facts.title, SilentReporter()
                )
                decoders[LLAMA_CPP + gguf_type] = LlamaCppDecoder(file, longest)
        return decoders

    def _prompts(self) -> list[tuple[Prompt, list[int]]]:
        config, loaded = self.config, self.loaded
        name = prompt_set(config, loaded.facts)
        room = loaded.facts.context - config.max_new_tokens
        prompts = tokenize_prompts(benchmark_prompts(name), loaded.tokenizer, room)[: config.count]
        if not prompts:
            raise ConfigError(
                f"No prompt of {name} fits into the context.",
                f"{config.max_new_tokens} new tokens leave too little of the context of "
                f"{loaded.facts.context} tokens.",
                "Choose fewer new tokens.",
                "max_new_tokens",
            )
        self.context.record_environment(
            text={"prompts": prompt_facts(name, [ids for _, ids in prompts])}
        )
        return prompts

    # answers ---------------------------------------------------------------------------------

    def _answers(self, decoders: Mapping[str, Decoder]) -> list[Answers]:
        """Time all decoders on each prompt. The answers to a prompt are in a checkpoint, which is
        valid for this list of decoders only."""
        answers, phase = [], self.phase
        ends = end_ids(self.loaded.tokenizer, self.loaded.model.generation_config)
        for number, (prompt, ids) in enumerate(self.prompts):
            stop_if_asked(phase)
            digest = sha256(f"{', '.join(decoders)} {ids}".encode()).hexdigest()
            name = f"prompt-{number:05d}-{digest[:12]}"
            folder = self.context.checkpoints.find(name)
            step = f"Prompt {number + 1} of {len(self.prompts)}: {prompt.task}"
            phase.progress(number, len(self.prompts), REPLAY if folder else step)
            if folder:
                answers.append(unpacked(json.loads((folder / "answers.json").read_text())))
                continue
            limit, rounds = self.config.max_new_tokens, self.config.rounds
            measured = time_decoders(decoders, ids, limit, ends, rounds, phase, number)
            with self.context.checkpoints.write(name) as draft:
                (draft / "answers.json").write_text(json.dumps(packed(measured)))
            answers.append(measured)
        return answers

    # records ---------------------------------------------------------------------------------

    def _record(self, report: DecoderReport, by_task: Mapping[str, DecoderSummary]) -> None:
        """Record a report, and its figures as results for tables and charts."""
        self.context.decoder(report.name, report.record())
        figures = {
            TOKENS_PER_SECOND: (report.speed, self.config.rounds),
            SPEED_UP: (report.speed_up, self.config.rounds),
            ACCEPTED_LENGTH: (report.accepted, sum(report.lengths.values())),
            BREAK_EVEN: (report.break_even, None),
            PASS_MS: (sum(report.milliseconds.values()), None),
            SAME_TEXT: (report.same, report.prompts),
            **{speed_up_of(t): (s.speed_up.value, s.prompts) for t, s in by_task.items()},
        }
        for metric, (value, n) in figures.items():
            low, high = report.ranges.get(str(metric), (None, None))
            spread = {} if low is None else {"lowest": low, "highest": high}
            self.context.result(report.name, metric, value, n=n, **spread)


def _paths(proposer: Proposer, hits: Mapping[TreePath, float]) -> list[TreePath]:
    """Return the paths of a draft tree; for a dynamic tree, those accepted most often."""
    if not isinstance(proposer, TreeProposer):
        return []
    policy = proposer.policy
    if isinstance(policy, StaticTree):
        return policy.paths
    most_accepted = nlargest(MAX_PATHS, hits, key=lambda path: (hits[path], -len(path)))
    return sorted(most_accepted, key=lambda path: (len(path), path))


def run(config: BenchmarkJob, context: JobContext) -> None:
    """Run the job. The answers to each prompt are in a checkpoint, so an interrupted run
    continues."""
    loaded = load_model(config.model, prepare(config, context), config.precision, context)
    target = TargetModel(loaded.model)
    drafters = len(parse_drafters(config.drafters, config.model, "drafters"))
    context.phases(work(config, loaded.facts, drafters))
    context.log(f"Decoder: {target.decoder}.")
    context.record_environment(decoder=target.decoder)
    if target.native:
        context.result(VANILLA, BYTES_PER_TOKEN, target.native.layout.size)
    DecodingBenchmark(config, loaded, target, context).compare()
    reports = decoder_reports(context.run)
    for sentence in verdicts(reports):
        context.log(sentence)
    # the fastest decoder represents the run, other implementations excluded
    own_reports = [report for report in reports if not report.peer]
    fastest = max(own_reports, key=lambda report: report.speed)
    context.result("run", TOKENS_PER_SECOND, fastest.speed, of=fastest.label)
    if len(own_reports) > 1:
        context.result("run", SPEED_UP, fastest.speed_up, of=fastest.label)
