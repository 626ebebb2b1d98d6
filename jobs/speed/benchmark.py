"""The timing of a speed job: who decodes, the answers of all of them, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from backend.errors import ConfigError
from backend.methods.amphista.base_model import TargetModel
from backend.methods.amphista.checkpoint import Amphista
from backend.methods.amphista.decoding.benchmark import (
    VANILLA,
    Answers,
    DecoderSummary,
    packed,
    summarise,
    time_decoders,
    unpacked,
)
from backend.methods.amphista.decoding.cost_model import SIZES as COST_SIZES
from backend.methods.amphista.decoding.cost_model import measure_costs
from backend.methods.amphista.decoding.proposers import (
    AssistantModel,
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    TreeProposer,
)
from backend.methods.amphista.decoding.tree import best_tree
from backend.methods.amphista.generate import make_proposer
from backend.models.loading import LoadedModel, load
from backend.reporter import REPLAY, stop_if_asked
from backend.text.prompt_ids import end_ids, readable_ids
from backend.text.prompts import Prompt, benchmark_prompts
from jobs.fields.drafters import drafter_folder, drafters_named
from jobs.fields.model import absolute
from jobs.fields.prompts import prompt_facts, prompt_set
from jobs.runtime.context import JobContext
from jobs.runtime.progress import Phase, Phases
from jobs.speed.config import TREE_PROMPTS, TREE_SIZES, SpeedJob
from jobs.speed.report import ASSISTANT, COMBINED, LOOKUP, path_name

TREES = "trees"  # the checkpoint that holds the tree sizes that were chosen


class DecodingBenchmark:
    """One speed job at work."""

    def __init__(
        self, config: SpeedJob, loaded: LoadedModel, target: TargetModel, context: JobContext
    ) -> None:
        self.config, self.loaded, self.target, self.context = config, loaded, target, context
        self.prompts = self._prompts()
        self.drafters = {
            job.run: Amphista.load(drafter_folder(job))
            for job in drafters_named(config.drafters, config.model, "drafters")
        }
        trees = len(self.drafters) * config.try_sizes * len(TREE_SIZES)
        self.phases = Phases(context, {"compare": config.count, TREES: trees * TREE_PROMPTS / 2})

    def compare(self) -> None:
        """Times all arms on all prompts and records each, over all and by task."""
        arms, phase = self._arms(), self.phases.phase("compare")
        answered = self._ask_all("prompt", arms, self.prompts, self.config.rounds, phase)
        tasks = [prompt.task for prompt, _ in self.prompts]
        for name, proposer in arms.items():
            self._record(name, summarise(name, answered), proposer)
            for task in dict.fromkeys(tasks):
                own = [each for each, of in zip(answered, tasks, strict=True) if of == task]
                self._record_task(name, task, summarise(name, own))

    def try_sizes(self) -> None:
        """Times every drafter with trees of other sizes; draws both curves over the size."""
        for number, (name, drafter) in enumerate(self.drafters.items()):
            sizes = [n for n in TREE_SIZES if n <= 1 + len(drafter.growth)]
            arms: dict[str, Proposer] = {VANILLA: NoDraft()}
            bound = drafter.bind(self.target)
            for n in sizes:
                arms[str(n)] = TreeProposer(bound, self.target, best_tree(drafter.growth, n))
            phase = self.phases.phase(TREES, number, len(self.drafters))
            answered = self._ask_all(name, arms, self.prompts[:TREE_PROMPTS], 1, phase)
            for n in sizes:
                found = summarise(str(n), answered)
                self.context.metric(f"{name}/accepted", found.accepted, n)
                self.context.metric(f"{name}/speed-up", found.speed_up.value, n)
                self.context.metric(f"{name}/break even", found.break_even, n)

    # who decodes -----------------------------------------------------------------------------

    def _arms(self) -> dict[str, Proposer]:
        """Name -> proposer, vanilla first. Tree sizes are chosen once, whatever is resumed."""
        config, target = self.config, self.target
        found: dict[str, Proposer] = {VANILLA: NoDraft()}
        if config.lookup:
            found[LOOKUP] = PromptLookup()
        if config.assistant:
            spec, device = absolute(config.assistant), str(target.device)
            small = load(spec, device, target.dtype, self.context.log)
            found[ASSISTANT] = AssistantModel(small.model, target.vocabulary)
        stored = self.context.checkpoints.find(TREES)
        sizes = json.loads((stored / "sizes.json").read_text()) if stored else {}
        for name, drafter in self.drafters.items():
            nodes = sizes.get(name, config.nodes)
            drafted = make_proposer(target, drafter, nodes, least=2)
            sizes[name] = drafted.nodes
            self.context.log(f"{name}, {drafter.arm}: a tree of {drafted.nodes} nodes.")
            found[name] = drafted
            if config.combined and isinstance(drafted, TreeProposer):
                found[name + COMBINED] = PromptLookupFirst(drafted)
        if not stored:
            self._settle(sizes)
        return found

    def _settle(self, sizes: Mapping[str, int]) -> None:
        """Records what a pass costs here, and stores the sizes that were chosen by it."""
        costs = measure_costs(self.target)
        for nodes in COST_SIZES:
            self.context.metric("cost/verify", costs.ratio(nodes), nodes)
        with self.context.checkpoints.write(TREES) as folder:
            (folder / "sizes.json").write_text(json.dumps(sizes))

    def _prompts(self) -> list[tuple[Prompt, list[int]]]:
        """The prompts that are asked, with their token ids."""
        config, loaded = self.config, self.loaded
        name = prompt_set(config, loaded.facts)
        room = loaded.facts.context - config.max_new_tokens
        found = readable_ids(benchmark_prompts(name), loaded.tokenizer, room)
        if not found:
            raise ConfigError(
                f"No prompt of {name} fits.",
                f"{config.max_new_tokens} new tokens leave too little of the "
                f"{loaded.facts.context} that the model reads.",
                "Ask for fewer new tokens.",
                "max_new_tokens",
            )
        found = found[: config.count]
        facts = prompt_facts(name, [ids for _, ids in found])
        self.context.environment(text={"prompts": facts})
        return found

    # the answers -----------------------------------------------------------------------------

    def _ask_all(
        self,
        place: str,
        arms: Mapping[str, Proposer],
        prompts: Sequence[tuple[Prompt, list[int]]],
        rounds: int,
        phase: Phase,
    ) -> list[Answers]:
        """Every arm's answers; those to one prompt are one checkpoint, for these arms alone."""
        answered = []
        rivals = ", ".join(arms)
        ends = end_ids(self.loaded.tokenizer, self.loaded.model.generation_config)
        for number, (prompt, ids) in enumerate(prompts):
            stop_if_asked(phase)
            digest = sha256(f"{rivals} {ids}".encode()).hexdigest()
            name = f"{place}-{number:05d}-{digest[:12]}"
            folder = self.context.checkpoints.find(name)
            words = f"Prompt {number + 1} of {len(prompts)}: {prompt.task}"
            phase.progress(number, len(prompts), REPLAY if folder else words)
            if folder is None:
                limit = self.config.max_new_tokens
                found = time_decoders(self.target, arms, ids, limit, ends, rounds, phase, number)
                with self.context.checkpoints.write(name) as draft:
                    (draft / "answers.json").write_text(json.dumps(packed(found)))
                answered.append(found)
            else:
                answered.append(unpacked(json.loads((folder / "answers.json").read_text())))
        return answered

    # what is recorded ------------------------------------------------------------------------

    def _record(self, name: str, found: DecoderSummary, proposer: Proposer) -> None:
        """The figures of one arm over all prompts."""
        result, drafter = self.context.result, self.drafters.get(name.removesuffix(COMBINED))
        speed, up, n = found.speed, found.speed_up, self.config.rounds
        spread = {"lowest": speed.lowest, "highest": speed.highest}
        result(name, "tokens_per_second", speed.value, n=n, prompts=found.prompts, **spread)
        about: dict[str, Any] = {"nodes": proposer.nodes, "arm": drafter.arm if drafter else ""}
        result(name, "speed_up", up.value, n=n, lowest=up.lowest, highest=up.highest, **about)
        lengths = {str(length): count for length, count in found.lengths.items()}
        passes = sum(found.lengths.values())
        more: dict[str, Any] = {}
        if isinstance(proposer, TreeProposer):
            paths = proposer.tree.paths
            more["hits"] = {path_name(path): found.hits.get(path, 0.0) for path in paths}
        result(name, "accepted_length", found.accepted, n=passes, lengths=lengths, **more)
        parts = {part: 1000 * seconds for part, seconds in found.parts.items()}
        result(name, "break_even", found.break_even, milliseconds=parts)
        same = {"first_difference": found.first_difference}
        result(name, "same_text", found.same / found.prompts, n=found.prompts, **same)

    def _record_task(self, name: str, task: str, found: DecoderSummary) -> None:
        up = found.speed_up
        self.context.result(
            name, f"speed_up/{task}", up.value, n=found.prompts, lowest=up.lowest,
            highest=up.highest, accepted=found.accepted,
        )  # fmt: skip
