"""Drafter training job: the base model generates responses, its hidden states are cached, the heads
are trained and measured on held-out responses, and the best draft tree for this machine is
found."""

import random
from typing import Any

import torch
from pydantic import BaseModel

from backend.checkpoints import Checkpoints, sha256_of
from backend.decoding.cost_model import measure_costs
from backend.decoding.draft_tree import best_tree, expected_length, grow
from backend.decoding.target_model import TargetModel
from backend.drafters.adapted import FIT_TOKENS
from backend.drafters.checkpoint import WEIGHTS, Amphista, BaseFingerprint, pack
from backend.drafters.config import DrafterConfig, TrainingConfig, arm_of, head_stage
from backend.drafters.exact_walk import walk_answers
from backend.drafters.generate import TreeProposer, describe_trees
from backend.drafters.registry import Drafter, build_drafter
from backend.drafters.training.hidden_state_cache import (
    HiddenStateCache,
    SequenceSources,
    collect,
    draft_vocabulary,
)
from backend.drafters.training.loss import NODES, HeadAccuracy
from backend.drafters.training.prompts import PromptRequest, prompts_for
from backend.drafters.training.trainer import CHECKPOINT, DrafterTrainer
from backend.errors import ConfigError
from backend.export.card import copy_terms, origin_of
from backend.metric_key import MetricKey
from backend.text.chat_template import end_ids
from backend.text.corpora import WIKIPEDIA
from backend.text.prompts import BUILT_IN, has_wikipedia_sample
from backend.text.slices import calibration_slices
from jobs import metrics
from jobs.amphista.kind import DRAFTER, TRAINING, AmphistaJob, corpus_name, prompt_sets, work
from jobs.fields.text import prompt_facts
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_model, record_texts

FORECAST_ANSWERS = 24  # held-out answers used for the forecast


def run(config: AmphistaJob, context: JobContext) -> None:
    """Run the job. Answers and training are in checkpoints, so an interrupted run continues."""
    DrafterRun(config, context).run()


class DrafterRun:
    """One drafter training run: base model, phases and steps."""

    def __init__(self, config: AmphistaJob, context: JobContext) -> None:
        self.config, self.context = config, context
        device = prepare(config, context)
        self.loaded = load_model(config.model, device, config.precision, context, decodes=False)
        self.target = TargetModel(self.loaded.model)
        self.base = BaseFingerprint.of(self.target, config.model)
        self.phases = context.phases(work(config, self.loaded.facts))

    def run(self) -> None:
        """Collect data, train, measure and save the drafter."""
        config, context = self.config, self.context
        learned, heldout = self._collect()
        vocabulary = draft_vocabulary(learned, self.target.vocabulary, config.draft_vocabulary)
        torch.manual_seed(config.seed)
        drafter = build_drafter(config_part(config, DrafterConfig), self.target, vocabulary)
        self._initialize(drafter, learned)
        accuracy = self._train(drafter, learned, heldout)
        self.phases.phase("measure").progress(0, 1, "Measuring this machine")
        saved = self._save(drafter, accuracy, max(learned.lengths + heldout.lengths))
        record_economy(saved, self.target, accuracy, heldout, context)

    def _collect(self) -> tuple[HiddenStateCache, HiddenStateCache]:
        context, phase = self.context, self.phases.phase("data")
        sources = self._windows() if self.config.data == "text" else self._prompts()
        learned, heldout = collect(self.target, sources, context.checkpoints, phase)
        tokens = [sum(cache.lengths) for cache in (learned, heldout)]
        context.log(f"{tokens[0]:,} training tokens, {tokens[1]:,} held-out tokens.")
        return learned, heldout

    def _windows(self) -> SequenceSources:
        config, loaded = self.config, self.loaded
        name = corpus_name(config, loaded.facts)
        request = (config.answers, config.answer_tokens, config.seed)
        text, _ = calibration_slices(name, loaded.tokenizer, *request)
        record_texts({"training": text}, self.context)
        rows = text.input_ids.tolist()
        random.Random(config.seed).shuffle(rows)
        return SequenceSources(rows[config.heldout :], rows[: config.heldout], limit=0)

    def _prompts(self) -> SequenceSources:
        """Load the prompts for the base model, as token ids."""
        config, loaded, context = self.config, self.loaded, self.context
        sets, limit = prompt_sets(config, loaded.facts), config.answer_tokens
        request = PromptRequest(sets, config.answers, config.heldout, limit, config.seed)
        learned, heldout = prompts_for(
            self.target, loaded.tokenizer, request, context.checkpoints, self.phases.phase("ask")
        )
        purpose, field = ("training", "prompts") if not learned else ("held-out", "heldout")
        if not learned or not heldout:
            raise ConfigError(
                f"{' and '.join(sets)}: no {purpose} prompts are left.",
                f"Only {len(learned) + len(heldout)} prompts leave room for answers of {limit} "
                "tokens.",
                "Choose other prompts, shorter answers, or another number of held-out sequences.",
                field,
            )
        facts = prompt_facts(" and ".join(sets), learned + heldout)
        if BUILT_IN in sets:
            facts["passages"] = WIKIPEDIA if has_wikipedia_sample() else "built-in notices"
            context.log(f"Passages in the prompts: {facts['passages']}.")
        context.record_environment(text={"prompts": facts})
        ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
        return SequenceSources(learned, heldout, limit, ends)

    def _initialize(self, drafter: Drafter, learned: HiddenStateCache) -> None:
        """Initialize scales and fusion of a new drafter; one in a checkpoint already has them."""
        if self.context.checkpoints.find(CHECKPOINT):
            return
        if explained := drafter.initialize(self.target, learned.spread(FIT_TOKENS)):
            self.context.result(DRAFTER, MetricKey("fit_explained"), explained)
            self.context.log(f"The initial fusion explains {explained:.0%} of the layer's inputs.")

    def _train(
        self, drafter: Drafter, learned: HiddenStateCache, heldout: HiddenStateCache
    ) -> HeadAccuracy:
        """Train until the budget is used up; return the last measurement."""
        config, context = self.config, self.context
        count = drafter.parameter_count()
        context.log(f"{arm_of(drafter.config.model_dump())}: {count:,} trainable weights.")
        trainer = DrafterTrainer(
            drafter,
            self.target,
            learned,
            heldout,
            config_part(config, TrainingConfig),
            config.seed,
            context.checkpoints,
            self.phases.phase("train"),
        )
        accuracy = trainer.run()
        context.result(DRAFTER, metrics.STEPS, trainer.steps)
        context.step_time(TRAINING, trainer.seconds)
        return accuracy

    def _save(self, drafter: Drafter, accuracy: HeadAccuracy, longest: int) -> Amphista:
        """Grow the tree, record all figures and save the drafter."""
        context, config = self.context, self.config.model_dump(mode="json")
        figures = accuracy.by_head()
        saved = pack(drafter, self.base, grow(accuracy.answers), figures, config, longest)
        with Checkpoints(context.folder).write(DRAFTER) as folder:
            saved.save(folder)
            copy_terms(origin_of(self.config.model), folder)
        digest = sha256_of(context.folder / DRAFTER / WEIGHTS)
        context.record_environment(weights_sha256=digest)
        context.artifact(context.folder / DRAFTER, DRAFTER, digest)
        for family, values in figures.items():
            for head, value in enumerate(values, 1):
                metric = MetricKey(family)
                context.result(head_stage(head), metric, value, n=len(accuracy.ranks))
        count, arm = drafter.parameter_count(), arm_of(drafter.config.model_dump())
        context.result(DRAFTER, metrics.PARAMETERS, count, arm=arm)
        context.result(DRAFTER, metrics.PARAMETER_SHARE, count / self.loaded.facts.parameters)
        return saved


def record_economy(
    saved: Amphista,
    target: TargetModel,
    accuracy: HeadAccuracy,
    heldout: HiddenStateCache,
    context: JobContext,
) -> None:
    """Record accepted length and predicted speed-up on this machine, for static trees and for the
    default trees."""
    drafter = saved.bind(target)
    trial = TreeProposer(drafter, target, best_tree(saved.growth, NODES))
    costs = measure_costs(target, trial)
    for nodes in costs.verify:
        figures = {
            (metrics.COST, "verify"): costs.ratio(nodes),
            (metrics.COST, "break even"): costs.break_even(nodes),
            (metrics.TREE, "accepted"): expected_length(saved.growth, nodes),
            (metrics.TREE, "speed-up"): costs.speed_up(saved.growth, nodes),
        }
        for (family, series), value in figures.items():
            context.metric(MetricKey(family, series=series, axis="nodes"), value, nodes)
    context.result(
        DRAFTER, metrics.ACCEPTED_LENGTH, accuracy.accepted(), n=len(accuracy.ranks), nodes=NODES
    )
    proposer = TreeProposer(drafter, target, costs.dynamic_tree())
    walk = walk_answers(proposer, (heldout[n] for n in range(min(FORECAST_ANSWERS, len(heldout)))))
    predicted = walk.speed_up(costs)
    context.result(DRAFTER, metrics.PREDICTED_SPEED_UP, predicted, nodes=proposer.nodes)
    context.result(DRAFTER, metrics.PREDICTED_LENGTH, walk.accepted_length, nodes=proposer.nodes)
    context.result(DRAFTER, metrics.DRAFT_COST, costs.draft / costs.verify[1])
    context.log(
        f"On held-out answers: {walk.accepted_length:.2f} tokens per pass with "
        f"{describe_trees(proposer)}; {predicted:.2f} times the speed of plain decoding."
    )


def config_part(config: BaseModel, kind: type[BaseModel]) -> Any:
    """Return the part of a config that belongs to the config class `kind`."""
    return kind(**config.model_dump(include=set(kind.model_fields)))
