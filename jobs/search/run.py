"""A search for a mix of formats as a job: candidates of every layer, generations of mixes, and what
the best gains over the solver's on text that nothing was chosen on."""

import torch

from backend.budget import Budget
from backend.models.block_forward import after_blocks
from backend.models.blocks import resolve_dtype
from backend.sensitivity.measured import trace
from backend.sensitivity.search import MixedModel, MixSearch
from backend.sensitivity.walk import CandidateWalk, Solvers
from backend.store import queries
from jobs.evaluation.quality import TEXT_ALONE, Quality
from jobs.fields.models import resolve_model
from jobs.runtime.context import JobContext
from jobs.runtime.duration import FLOPS_PER_THREAD
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_evaluation_text, load_texts, load_whole
from jobs.runtime.progress import Phases
from jobs.search.kind import DENSE, FOUND, LABELS, SOLVER, SearchJob, flops_by_phase, solved


def run(config: SearchJob, context: JobContext) -> None:
    """Candidates are checkpoints by block, the search one by generation: a killed run goes on."""
    device, base = prepare(config, context), resolve_model(config.model)
    # a later attempt goes on with the formats of the first, whatever has been profiled since
    solver, mix = solved(config, str(queries.job(context.run).environment.get("profile", "")))
    context.environment(profile=solver.profile.run)
    loaded = load_whole(base, device, torch.float32, context)
    loaded.model.requires_grad_(False)
    flops = flops_by_phase(config, solver, loaded.facts)
    seconds = 60 * config.minutes
    dense_and_candidates = {name: flops[name] for name in ("dense", "candidates")}
    timed = {"search": seconds * FLOPS_PER_THREAD}
    phases = Phases(context, dense_and_candidates | timed | {"measure": flops["measure"]})
    evaluation = load_evaluation_text(config, config.model, context)
    texts = load_texts(config, loaded, evaluation, config.seed, context)
    quality = Quality(
        TEXT_ALONE,
        loaded,
        evaluation,
        context,
        batch=4,
        labels=LABELS,
        precision=config.evaluation_precision,
    )
    quality.measure(DENSE, phases.phase("dense"))
    dtype = getattr(torch, resolve_dtype("auto", torch.device(device)))
    dense = trace(loaded.model, texts.heldout.input_ids, dtype, phases.phase("candidates", 0, 2))
    with torch.no_grad():
        reference = [
            after_blocks(loaded.model, rows.to(device), hidden).float().log_softmax(-1)[0].half()
            for rows, hidden in zip(texts.heldout.input_ids.split(1), dense.inputs[-1], strict=True)
        ]
    CandidateWalk(
        loaded.model,
        texts.calibration.input_ids,
        dtype,
        solver.formats[1:],
        Solvers(),
        context.checkpoints,
        phases.phase("candidates", 1, 2),
        "Candidates",
    ).run()
    outside = [x.name for x in solver.profile.layers if x.block < 0]
    mixed = MixedModel(loaded.model, context.checkpoints, outside)
    search = MixSearch(
        mixed,
        solver,
        Budget.parse(config.budget),
        texts.heldout.input_ids,
        reference,
        config.offspring,
        config.seed,
        context.checkpoints,
        phases.phase("search"),
        dict(mix.formats),
    )
    found = search.run(seconds)
    context.log(f"{search.generation} generations, {search.taken} improvements.")
    context.environment(mix={name: str(form) for name, form in found.formats.items()})
    for number, (stage, chosen) in enumerate({SOLVER: mix, FOUND: found}.items()):
        if quality.missing(stage):
            mixed.take(chosen.formats)
        quality.measure(stage, phases.phase("measure", number, 2))
    context.outcome(flops=sum(flops.values()), timed_seconds=seconds, kept_stage=FOUND)
