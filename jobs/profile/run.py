"""A sensitivity profile as a job: trace and gradients on held-out text, then every layer in every
format, block by block."""

from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from backend.errors import ModelError
from backend.live.measurements import DecodingClock
from backend.models.blocks import LinearWeight, resolve_dtype
from backend.models.families.stored import LinearShape
from backend.models.loading import free_memory
from backend.reporter import Reporter, stop_if_asked
from backend.sensitivity import walk
from backend.sensitivity.measured import SensitivityMeter, measure_gradients, trace
from backend.sensitivity.profile import ESTIMATES, TOKEN_WISE, SensitivityProfile
from backend.sensitivity.walk import Solvers
from backend.statistics.tensors import SENSITIVITY, TensorProfile
from backend.text.slices import calibration_slices
from jobs.fields.models import resolve_model
from jobs.fields.text import context_length
from jobs.metrics import HELDOUT_LOSS, RANK_CORRELATION
from jobs.profile.kind import (
    DENSE,
    EMBEDDING_FORMATS,
    ProfileJob,
    calibration_name,
    memory_bytes,
    parsed,
    work,
)
from jobs.profile.profiles import (
    CALIBRATION_TOKENS,
    DECODING_TIMES,
    ESTIMATE,
    WEIGHTS_MARK,
    WIDEST_INPUT,
    mark_of,
    profile_of_run,
)
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_whole, record_texts


def run(config: ProfileJob, context: JobContext) -> None:
    """Profiles block after block; one that an earlier attempt has profiled is not made again."""
    device, base = prepare(config, context), resolve_model(config.model)
    dtype = resolve_dtype(config.precision, torch.device(device))
    streamed, _ = memory_bytes(config, base.facts, free_memory(device))
    context.log(f"Loading {config.model} on {device}; passes in {dtype}.")
    loaded = load_whole(base, device, torch.float32, context, streamed)
    loaded.model.requires_grad_(False)
    phases = context.phases(work(config, loaded.facts))
    corpus = calibration_name(config, loaded.facts)
    length = context_length(config, loaded.facts)
    calibration, heldout = calibration_slices(
        corpus, loaded.tokenizer, config.segments, length, config.seed, config.heldout_windows
    )
    record_texts({"calibration": calibration, "held-out": heldout}, context)
    context.environment(
        precision=dtype,
        **{
            WEIGHTS_MARK: mark_of(base),
            ESTIMATE: TOKEN_WISE,
            CALIBRATION_TOKENS: calibration.input_ids.numel(),
            WIDEST_INPUT: max(x.columns for x in loaded.facts.linears),
        },
    )
    passes = getattr(torch, dtype)
    dense = trace(loaded.model, heldout.input_ids, passes, phases.phase("dense"))
    measure_gradients(dense, config.seed, phases.phase("gradients"))
    measured = () if streamed else config.measured_formats
    outside = () if streamed else loaded.facts.embeddings
    meter = None
    if measured or outside:
        meter = SensitivityMeter(dense, config.windows, walk.usual_width(dense))
    if meter:
        context.result(DENSE, HELDOUT_LOSS, meter.dense_loss, n=config.windows)
    solvers = Solvers(config.pruner, config.grid, config.space, config.damping)

    def record(linear: LinearWeight | LinearShape, figures: walk.Figures) -> None:
        context.profile(
            TensorProfile(
                f"{linear.name}.weight", linear.block, linear.module, DENSE, SENSITIVITY, figures
            )
        )

    walk.SensitivityWalk(
        loaded.model,
        calibration.input_ids,
        passes,
        parsed(config.formats),
        solvers,
        context.checkpoints,
        phases.phase("layers"),
        config.all_formats,
        dense,
        frozenset(measured),
        meter,
        record,
    ).run()
    for shape in outside:
        assert meter is not None
        context.log(f"Measuring {shape.name}.")
        record(
            shape,
            walk.profile_embedding(
                loaded.model, shape, config.all_formats, EMBEDDING_FORMATS, meter
            ),
        )
    if not streamed and device == "cpu":
        _time(loaded.model, config, context, phases.phase("decoding"))
    summarize(profile_of_run(context.run), context)


def _time(
    model: PreTrainedModel, config: ProfileJob, context: JobContext, reporter: Reporter
) -> None:
    """Record how long a token takes in each format, where the native decoder runs the model."""
    try:
        clock = DecodingClock(model, partial(stop_if_asked, reporter))
    except ModelError as error:
        context.log(f"No format is timed. {error}")
        return
    context.log(f"Timing a token in each format; {clock.running.decoder}.")
    times = clock.times(parsed(config.formats), EMBEDDING_FORMATS)
    context.environment(**{DECODING_TIMES: times.model_dump()})


def summarize(profile: SensitivityProfile, context: JobContext) -> None:
    """Record how well the estimates agree with what was measured."""
    for estimate in ESTIMATES:
        value = profile.agreement(estimate)
        if value is not None:
            context.result(DENSE, replace(RANK_CORRELATION, series=estimate), value)
            context.log(f"Rank correlation of {estimate} with the measured divergence: {value:.3f}")
