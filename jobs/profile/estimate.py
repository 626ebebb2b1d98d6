"""What a sensitivity profile needs before it starts: FLOPs, memory, and what is refused."""

from typing import Any

from backend.errors import ConfigError
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.text.corpora import require_length
from jobs.fields.base_model import resolve_model
from jobs.fields.text import check_context, context_length, require_text
from jobs.kind import Requirements
from jobs.profile.config import MAX_FORMATS, ProfileJob, parsed
from jobs.runtime.duration import GRAM_SHARE

COLUMN_FLOPS = 60.0  # of a weight that GPTQ or SparseGPT goes over, beside the products
MEASURE_COPIES = 8  # of the logits of one window
TIMED_TOKENS = 256  # to time a format, those before the passes included


def requirements(config: ProfileJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    check_context(config, facts)
    corpus = calibration_name(config, facts)
    require_text(corpus, "calibration_text", "calibration_text")
    windows = config.segments + config.heldout_windows
    require_length(corpus, windows * context_length(config, facts), "calibration_text")
    if not config.heldout_windows:
        what, why = "Nothing is held out.", "Gradients and losses are taken on held-out windows."
        raise ConfigError(what, why, "Choose a share above 0.", field="holdout")
    check_formats(config, facts)
    streamed, needed = memory_bytes(config, facts, memory.memory_available())
    warnings: tuple[str, ...] = ()
    if streamed:
        warnings = (
            "The model does not fit into memory: its blocks are read from disk, and nothing but "
            "the estimates is made.",
        )
    return Requirements(
        model=config.model, title=facts.title, flops=flops_by_phase(config, facts),
        memory=needed, warnings=warnings,
    )  # fmt: skip


def calibration_name(config: ProfileJob, facts: ModelFacts) -> str:
    """The corpus; auto is the model's default."""
    named = config.calibration_text
    if named == "self":
        what = "A profile is not taken on text that the model samples."
        why = "Losses on it say little about text of others."
        raise ConfigError(what, why, "Choose a corpus.", field="calibration_text")
    return facts.default_text if named == "auto" else named


def check_formats(config: ProfileJob, facts: ModelFacts) -> None:
    """Refuse formats that fit no layer, or are measured but not made. Raises ConfigError."""
    formats = parsed(config.formats)
    if not 0 < len(formats) <= MAX_FORMATS:
        what = f"{len(formats)} formats are not possible."
        raise ConfigError(what, "", f"Choose 1 to {MAX_FORMATS}.", field="formats")
    columns = {x.columns for x in facts.linears}
    if unfit := [x for x in formats if not any(x.fits(n) for n in columns)]:
        inputs = ", ".join(map(str, sorted(columns)))
        what, why = f"{unfit[0]} fits no layer of this model.", f"They have {inputs} inputs."
        raise ConfigError(what, why, "Choose a group that divides them.", field="formats")
    if missing := [x for x in config.measured_formats if x not in formats]:
        what = f"{missing[0]} is not among the formats."
        raise ConfigError(what, "", "Add it there, or leave it out here.", field="measured")
    if config.windows > config.heldout_windows:
        what = f"There are {config.heldout_windows} held-out windows, not {config.windows}."
        raise ConfigError(what, "", "Hold out more, or measure on fewer.", field="windows")


def flops_by_phase(config: ProfileJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each phase: the basis of estimate and progress."""
    weights, head = facts.linear_weights, facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    made = candidate_flops(facts, len(config.all_formats), config.segments * context)
    rest = 2.0 * (weights / 2 + head) * context * config.windows  # half of the blocks, on average
    measured = len(config.measured_formats) * len(facts.linears) * rest
    return {
        "dense": 2.0 * weights * config.heldout_windows * context,
        "gradients": 6.0 * (weights + head) * config.heldout_windows * context,
        "layers": made + measured,
        "decoding": 2.0 * (weights + head) * len(config.all_formats) * TIMED_TOKENS,
    }


def candidate_flops(facts: ModelFacts, formats: int, tokens: int) -> float:
    """Floating-point operations of a pass on `tokens` that makes every layer in every format."""
    solve = 2.0 * sum(x.rows * x.columns**2 for x in facts.linears)
    grams = 2.0 * sum(x.columns**2 for x in facts.linears) * GRAM_SHARE
    made = formats * (1.5 * solve + COLUMN_FLOPS * facts.linear_weights)
    return (2.0 * facts.linear_weights + grams) * tokens + made


def memory_bytes(
    config: ProfileJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether the model is streamed, and then purpose -> bytes at the peak."""
    context = context_length(config, facts)
    sizes: dict[str, Any] = {
        "dtype": dtype, "segments": config.segments, "context": context, "batch": 4, "streams": 1,
        "stages": 2, "on_disk": False,
    }  # fmt: skip
    kept = (facts.blocks + 1) * memory.activation_memory(
        facts, config.heldout_windows, context, dtype
    )
    logits = 4 * MEASURE_COPIES * facts.vocabulary * context
    needed = memory.memory_needed(facts, **sizes) + kept + logits
    streamed = needed > memory.STREAMING_THRESHOLD * available and not facts.support.stream
    parts = memory.memory_parts(facts, streamed=streamed, **sizes)
    decoder = {} if streamed else {"native decoder": 4 * facts.parameters}  # and what it lays out
    return streamed, parts | decoder | {"held-out states": kept, "logits": logits}
