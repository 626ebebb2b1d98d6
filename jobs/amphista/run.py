"""Training a drafter as a job: the base writes answers, its hidden states are cached, the heads
learn, are judged on answers they have not seen, and get the tree that pays on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from backend.methods.amphista.config import (
    ARMS,
    SHAPE,
    DrafterConfig,
    TrainingConfig,
    arm_of,
)
from backend.models.memory import memory_available, refuse_beyond
from jobs.amphista.data import DataConfig, sources_of
from jobs.amphista.estimate import (
    memory,
    parts,
    refuse_full_disk,
    refuse_unfit,
    require_data,
    untimed_work,
)
from jobs.fields.base_model import BaseConfig, load_model, refuse_precision, resolve_model
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.duration import estimate_seconds

if TYPE_CHECKING:
    from backend.methods.amphista.checkpoint import Amphista, BaseFingerprint
    from backend.methods.amphista.data.hidden_state_cache import HiddenStateCache
    from backend.methods.amphista.drafter.registry import Drafter
    from backend.methods.amphista.target_model import TargetModel
    from backend.methods.amphista.training.head_accuracy import HeadAccuracy
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phases

NAME, DRAFTER = "amphista", "drafter"


class AmphistaJob(BaseConfig, DrafterConfig, DataConfig, TrainingConfig, JobConfig):
    """A base, a shape, data, and a budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def part(config: BaseModel, kind: type[BaseModel]) -> Any:
    """The fields of `config` that belong to the config class `kind`."""
    return kind(**config.model_dump(include=set(kind.model_fields)))


# before the work ----------------------------------------------------------------------------------


def check(config: AmphistaJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    base = resolve_model(config.model)
    facts = base.facts
    refuse_precision(base, config.precision)
    refuse_unfit(config, facts)
    require_data(config, facts)
    needed = memory(config, facts)
    refuse_beyond(needed, memory_available(), facts.title)
    refuse_full_disk(config, facts)
    work = untimed_work(config, facts)
    seconds, basis = estimate_seconds(NAME, config.model, work, 60 * config.minutes)
    return Estimate(seconds, sum(needed.values()), work, basis, warnings(config))


def warnings(config: AmphistaJob) -> tuple[str, ...]:
    """What is worth knowing beforehand."""
    if config.data == "text":
        return ("Heads trained on text the base did not write guess its answers less well.",)
    return ()


def told(values: Mapping[str, Any]) -> list[str]:
    """What tells a drafter from others first: its arm, how long it learnt, and from how much."""
    minutes, steps = values.get("minutes") or 0, values.get("steps") or 0
    learnt = f"{minutes:g} min" if minutes else f"{steps:,} steps"
    written = "texts" if values.get("data") == "text" else "answers"
    return [arm_of(values), learnt, f"{values.get('answers') or 0:,} {written}"]


# the work -----------------------------------------------------------------------------------------


def run(config: AmphistaJob, context: JobContext) -> None:
    """The whole job. Answers and training are in checkpoints, so a killed job goes on."""
    import torch

    from backend.methods.amphista.checkpoint import BaseFingerprint
    from backend.methods.amphista.data.hidden_state_cache import collect, draft_vocabulary
    from backend.methods.amphista.drafter.registry import build_drafter
    from backend.methods.amphista.target_model import TargetModel
    from jobs.runtime.environment import prepare
    from jobs.runtime.progress import Phases

    device = prepare(config, context)
    loaded = load_model(config.model, device, config.precision, context)
    target, phases = TargetModel(loaded.model), Phases(context, parts(config, loaded.facts))
    base = BaseFingerprint.of(target, config.model)
    sources = sources_of(config, loaded, target, context, phases)
    learnt, heldout = collect(target, sources, context.checkpoints, phases.phase("data"))
    context.log(f"{sum(learnt.lengths):,} tokens to learn from, {sum(heldout.lengths):,} held out.")
    vocabulary = draft_vocabulary(learnt, target.vocabulary, config.draft_vocabulary)
    torch.manual_seed(config.seed)
    drafter = build_drafter(part(config, DrafterConfig), target, vocabulary)
    begin(drafter, target, learnt, config, context)
    judged, taken = train(drafter, target, learnt, heldout, config, context, phases)
    phases.phase("measure").progress(0, 1, "Measuring this machine")
    finish(drafter, target, judged, base, (learnt, heldout), config, context, loaded)
    timed = min(taken, 60 * config.minutes)  # judging and saving come on top
    context.result("run", "work", untimed_work(config, loaded.facts), timed=timed)


def begin(
    drafter: Drafter,
    target: TargetModel,
    learnt: HiddenStateCache,
    config: AmphistaJob,
    context: JobContext,
) -> None:
    """Gives an untrained drafter its scales and first fusion; one in a checkpoint has them."""
    from backend.methods.amphista.drafter.initialization import FITTED
    from backend.methods.amphista.training.trainer import CHECKPOINT

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
    from backend.methods.amphista.training.trainer import DrafterTrainer

    count = drafter.parameter_count()
    context.log(f"{arm_of(drafter.config.model_dump())}: {count:,} weights learn.")
    training = DrafterTrainer(
        drafter,
        target,
        learnt,
        heldout,
        part(config, TrainingConfig),
        config.seed,
        context.checkpoints,
        phases.phase("train"),
    )
    judged = training.run()
    context.result(DRAFTER, "steps", training.schedule.steps)
    context.result("run", "seconds/training", training.schedule.seconds)
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
    from backend.checkpoints import Checkpoints, sha256_of
    from backend.methods.amphista.checkpoint import WEIGHTS, pack
    from backend.methods.amphista.training.head_accuracy import TOP
    from backend.methods.amphista.tree import grow

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
    from backend.methods.amphista.decoding.cost_model import measure_costs
    from backend.methods.amphista.decoding.proposers import TreeProposer
    from backend.methods.amphista.training.head_accuracy import NODES
    from backend.methods.amphista.tree import best_tree

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


KINDS = (
    Kind(
        name=NAME,
        title="Amphista drafter",
        summary="Train heads that guess several tokens at once, so that the base verifies them in "
        "one pass and writes the same text faster.",
        config=AmphistaJob,
        check=check,
        run=run,
        stages={DRAFTER: "Drafter", **{f"head-{k}": f"Head {k}" for k in range(1, 11)}},
        told=told,
        told_of=frozenset({*SHAPE, "minutes", "steps", "answers", "data"}),
        of_models=False,
        presets={
            "quick look": {"minutes": 3, "answers": 256, "heldout": 32},
            "default": {},
            "thorough": {"minutes": 60, "answers": 6000},
            **{arm: fields for arm, fields in ARMS.items() if fields},
        },
    ),
)
