"""Training a drafter as a job: the base generates responses, its hidden states are cached, the
heads are trained, measured on held-out responses, and given the tree that pays on this machine."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel

from backend.checkpoints import Checkpoints, sha256_of
from backend.methods.amphista.checkpoint import WEIGHTS, Amphista, BaseFingerprint, pack
from backend.methods.amphista.config import DrafterConfig, TrainingConfig, arm_of
from backend.methods.amphista.data.hidden_state_cache import (
    HiddenStateCache,
    collect,
    draft_vocabulary,
)
from backend.methods.amphista.decoding.cost_model import measure_costs
from backend.methods.amphista.decoding.proposers import TreeProposer
from backend.methods.amphista.drafter.initialization import FITTED
from backend.methods.amphista.drafter.registry import Drafter, build_drafter
from backend.methods.amphista.target_model import TargetModel
from backend.methods.amphista.training.head_accuracy import NODES, TOP, HeadAccuracy
from backend.methods.amphista.training.trainer import CHECKPOINT, DrafterTrainer
from backend.methods.amphista.tree import best_tree, grow
from backend.models.loading import LoadedModel
from jobs.amphista.config import DRAFTER, AmphistaJob
from jobs.amphista.data import training_sources
from jobs.amphista.estimate import flops_by_phase, untimed_flops
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_model
from jobs.runtime.progress import Phases


def run(config: AmphistaJob, context: JobContext) -> None:
    """The whole job. Answers and training are in checkpoints, so a killed job goes on."""
    device = prepare(config, context)
    loaded = load_model(config.model, device, config.precision, context)
    target, phases = (
        TargetModel(loaded.model),
        Phases(context, flops_by_phase(config, loaded.facts)),
    )
    base = BaseFingerprint.of(target, config.model)
    sources = training_sources(config, loaded, target, context, phases)
    learnt, heldout = collect(target, sources, context.checkpoints, phases.phase("data"))
    context.log(f"{sum(learnt.lengths):,} tokens to learn from, {sum(heldout.lengths):,} held out.")
    vocabulary = draft_vocabulary(learnt, target.vocabulary, config.draft_vocabulary)
    torch.manual_seed(config.seed)
    drafter = build_drafter(config_part(config, DrafterConfig), target, vocabulary)
    begin(drafter, target, learnt, config, context)
    judged, taken = train(drafter, target, learnt, heldout, config, context, phases)
    phases.phase("measure").progress(0, 1, "Measuring this machine")
    finish(drafter, target, judged, base, (learnt, heldout), config, context, loaded)
    timed = min(taken, 60 * config.minutes)  # judging and saving come on top
    flops = sum(untimed_flops(config, loaded.facts).values())
    context.outcome(flops=flops, timed_seconds=timed)


def begin(
    drafter: Drafter,
    target: TargetModel,
    learnt: HiddenStateCache,
    config: AmphistaJob,
    context: JobContext,
) -> None:
    """Gives an untrained drafter its scales and first fusion; one in a checkpoint has them."""
    if context.checkpoints.find(CHECKPOINT):
        return
    explained = drafter.initialize(target, learnt.spread(FITTED), config.initial == "fitted")
    if explained:
        context.result(DRAFTER, "fit_explained", explained)
        context.log(f"The initial fusion explains {explained:.0%} of the layer's inputs.")


def train(
    drafter: Drafter,
    target: TargetModel,
    learnt: HiddenStateCache,
    heldout: HiddenStateCache,
    config: AmphistaJob,
    context: JobContext,
    phases: Phases,
) -> tuple[HeadAccuracy, float]:
    """Trains to the end of the budget; the last judgement, and the seconds it took."""
    count = drafter.parameter_count()
    context.log(f"{arm_of(drafter.config.model_dump())}: {count:,} weights learn.")
    training = DrafterTrainer(
        drafter,
        target,
        learnt,
        heldout,
        config_part(config, TrainingConfig),
        config.seed,
        context.checkpoints,
        phases.phase("train"),
    )
    judged = training.run()
    context.result(DRAFTER, "steps", training.schedule.steps)
    context.step_time("training", training.schedule.seconds)
    return judged, training.schedule.seconds


def finish(
    drafter: Drafter,
    target: TargetModel,
    judged: HeadAccuracy,
    base: BaseFingerprint,
    corpora: tuple[HiddenStateCache, HiddenStateCache],
    config: AmphistaJob,
    context: JobContext,
    loaded: LoadedModel,
) -> None:
    """Grows the tree, measures this machine, records all figures and saves the drafter."""
    growth = grow(judged.ranks)
    figures = {f"top{m}": judged.top(m) for m in TOP}
    longest = max(length for corpus in corpora for length in corpus.lengths)
    saved = pack(drafter, base, growth, figures, config.model_dump(mode="json"), longest)
    with Checkpoints(context.folder).write(DRAFTER) as folder:
        saved.save(folder)
    digest = sha256_of(context.folder / DRAFTER / WEIGHTS)
    context.environment(weights_sha256=digest)
    context.artifact(context.folder / DRAFTER, DRAFTER, digest)
    for name, values in figures.items():
        for head, value in enumerate(values, 1):
            context.result(f"head-{head}", name, value, n=len(judged.ranks))
    count = drafter.parameter_count()
    context.result(DRAFTER, "parameters", count, arm=arm_of(drafter.config.model_dump()))
    context.result(DRAFTER, "parameter_share", count / loaded.facts.parameters)
    record_economy(saved, target, judged, context)


def record_economy(
    saved: Amphista, target: TargetModel, judged: HeadAccuracy, context: JobContext
) -> None:
    """Accepted length and predicted speed-up for every size of tree on this machine."""
    trial = TreeProposer(saved.bind(target), target, best_tree(saved.growth, NODES))
    costs = measure_costs(target, trial)
    for nodes in costs.verify:
        context.metric("cost/verify", costs.ratio(nodes), nodes)
        context.metric("cost/break even", costs.break_even(nodes), nodes)
        context.metric("tree/accepted", judged.accepted(nodes), nodes)
        context.metric("tree/speed-up", judged.accepted(nodes) / costs.break_even(nodes), nodes)
    best = costs.best_nodes(saved.growth, least=2)
    accepted = judged.accepted(best)
    context.result(DRAFTER, "accepted_length", judged.accepted(), n=len(judged.ranks), nodes=NODES)
    context.result(DRAFTER, "predicted_speed_up", accepted / costs.break_even(best), nodes=best)
    context.result(DRAFTER, "draft_cost", costs.draft / costs.verify[1])
    context.log(
        f"On held-out answers {accepted:.2f} tokens a pass with {best} nodes; a tree of that size "
        f"breaks even at {costs.break_even(best):.2f} here."
    )


def config_part(config: BaseModel, kind: type[BaseModel]) -> Any:
    """The fields of `config` that belong to the config class `kind`."""
    return kind(**config.model_dump(include=set(kind.model_fields)))
