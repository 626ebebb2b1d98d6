"""Sensitivity profile job: gradients on held-out text, then every layer in every format, block by
block."""

from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from backend.errors import ModelError
from backend.live.measurements import DecodingClock
from backend.models.blocks import LinearWeight, resolve_dtype
from backend.models.devices import free_memory
from backend.models.families.stored import LinearShape
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
    read_profile,
    weights_fingerprint,
)
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_whole, record_texts


def run(config: ProfileJob, context: JobContext) -> None:
    """Run the job. Blocks profiled by an earlier attempt are skipped."""
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
    context.record_environment(
        precision=dtype,
        **{
            WEIGHTS_MARK: weights_fingerprint(base),
            ESTIMATE: TOKEN_WISE,
            CALIBRATION_TOKENS: calibration.input_ids.numel(),
            WIDEST_INPUT: max(x.columns for x in loaded.facts.linears),
        },
    )
    pass_dtype = getattr(torch, dtype)
    dense = trace(loaded.model, heldout.input_ids, pass_dtype, phases.phase("dense"))
    measure_gradients(dense, config.seed, phases.phase("gradients"))
    measured_formats = () if streamed else config.measured_formats
    embeddings = () if streamed else loaded.facts.embeddings
    meter = None
    if measured_formats or embeddings:
        meter = SensitivityMeter(dense, config.windows, walk.candidate_batch(dense))
    if meter:
        context.result(DENSE, HELDOUT_LOSS, meter.dense_loss, n=config.windows)
    solvers = Solvers(config.pruner, config.grid, config.range_search, config.damping)

    def record(linear: LinearWeight | LinearShape, figures: walk.Figures) -> None:
        context.profile(
            TensorProfile(
                f"{linear.name}.weight", linear.block, linear.module, DENSE, SENSITIVITY, figures
            )
        )

    walk.SensitivityWalk(
        loaded.model,
        calibration.input_ids,
        pass_dtype,
        parsed(config.formats),
        solvers,
        context.checkpoints,
        phases.phase("layers"),
        config.all_formats,
        dense,
        frozenset(measured_formats),
        meter,
        record,
    ).run()
    for shape in embeddings:
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
    summarize(read_profile(context.run), context)


def _time(
    model: PreTrainedModel, config: ProfileJob, context: JobContext, reporter: Reporter
) -> None:
    """Record the time per token in each format, if the native decoder supports the model."""
    try:
        clock = DecodingClock(model, partial(stop_if_asked, reporter))
    except ModelError as error:
        context.log(f"Formats are not timed. {error}")
        return
    context.log(f"Timing a token in each format; {clock.running.decoder}.")
    times = clock.times(parsed(config.formats), EMBEDDING_FORMATS)
    context.record_environment(**{DECODING_TIMES: times.model_dump()})


def summarize(profile: SensitivityProfile, context: JobContext) -> None:
    """Record the rank correlation of the estimates with the measurements."""
    for estimate in ESTIMATES:
        value = profile.agreement(estimate)
        if value is not None:
            context.result(DENSE, replace(RANK_CORRELATION, series=estimate), value)
            context.log(f"Rank correlation of {estimate} with the measured divergence: {value:.3f}")
