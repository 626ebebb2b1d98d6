"""The kind `profile`: config and requirements of sensitivity profiles."""

from typing import Any, ClassVar

from pydantic import field_validator

from backend.errors import ConfigError
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.options import Dtype, option
from backend.pruning.config import PrunerName
from backend.quantization import GridType
from backend.quantization.config import RangeSearchName
from backend.sensitivity.profile import Format
from backend.text.corpora import require_length
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.models import resolve_model
from jobs.fields.text import (
    MIN_HELDOUT,
    CalibrationText,
    check_context,
    context_length,
    few_tokens,
    require_text,
)
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements
from jobs.limits import run_memory

NAME, DENSE, DECODER = "profile", "dense", "native decoder"  # the last: on a CPU only
FORMATS = (
    "int2-g64, int3-g64, int4-g64, int5-g64, int6-g64, int8-g64, 30%, 40%, 50%, 60%, 70%, 80%, 2:4"
)
QUANTIZER = "gptq"  # quantizer of the candidates
EMBEDDING_FORMATS = tuple(map(Format.parse, ("int8-g32", "int6-g32", "int4-g32")))
MAX_FORMATS = 64
MEASURE_COPIES = 8  # copies of the logits of one window in memory
TIMED_TOKENS = 256  # decoded tokens to time a format, including the prompt


class ProfileJob(ModelConfig, CalibrationText, JobConfig):
    """Model, text and formats of a profile."""

    least_heldout: ClassVar[int] = MIN_HELDOUT

    formats: str = option(FORMATS, "Formats", max_length=1000)
    """Candidate formats of every layer, comma-separated: int4-g64 (4 bits in groups of 64), 50% or
    2:4 (sparsity), 2:4+int4-g64 (both)."""
    measured: str = option("", "Measured formats", max_length=1000, examples=["int3-g64, 50%"])
    """Formats whose loss is also measured layer by layer on held-out text. Fisher estimates of the
    other formats are scaled accordingly. Several times slower."""
    windows: int = option(1, "Windows per measurement", ge=1, le=64, unit="windows", advanced=True)
    """Held-out windows per measurement of a layer."""
    pruner: PrunerName = option("sparsegpt", "Pruner", advanced=True)
    """Pruner of the sparse candidates."""
    grid: GridType = option("symmetric", "Grid", advanced=True)
    """Grid of the quantized candidates, which GPTQ computes."""
    range_search: RangeSearchName = option("weighted", "Range search", advanced=True)
    """Range search of the quantized candidates."""
    damping: float = option(0.01, "Damping", gt=0, le=1, advanced=True)
    """Added to the Hessian diagonal, relative to the mean input energy."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Precision of all passes. auto: bfloat16 if the hardware supports it."""

    @field_validator("formats", "measured")
    @classmethod
    def _known_formats(cls, text: str) -> str:
        return ", ".join(dict.fromkeys(map(str, parsed(text))))

    @property
    def all_formats(self) -> tuple[Format, ...]:
        """Candidate formats in the order in which their figures are stored; those of embedding and
        head last."""
        return tuple(dict.fromkeys((*parsed(self.formats), *EMBEDDING_FORMATS)))

    @property
    def measured_formats(self) -> tuple[Format, ...]:
        return parsed(self.measured)


def parsed(text: str) -> tuple[Format, ...]:
    """Parse a comma-separated list of formats. Raises `ValueError` for an invalid format."""
    return tuple(Format.parse(part) for part in text.split(",") if part.strip())


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
        raise ConfigError(
            "No text is held out.",
            "Gradients and losses are measured on held-out windows.",
            "Choose a share above 0.",
            field="holdout",
        )
    check_formats(config, facts)
    device = run_memory(config.device)
    streamed, memory_parts = memory_bytes(config, facts, device.free)
    warnings = few_tokens(config, facts)
    if streamed:
        warnings += (
            "The model does not fit into memory. Its blocks are read from disk, and sensitivities "
            "are only estimated.",
        )
    return Requirements(
        title=facts.title,
        work=work(config, facts),
        memory=memory_parts if device.is_host else memory_parts | {DECODER: 0},
        device=device,
        warnings=warnings,
    )


def calibration_name(config: ProfileJob, facts: ModelFacts) -> str:
    """Return the name of the calibration corpus; auto is the default of the model. Raises
    `ConfigError` for text sampled from the model."""
    name = config.calibration_text
    if name == "self":
        raise ConfigError(
            "A profile cannot use text sampled from the model.",
            "Losses on this text do not predict losses on other text.",
            "Choose a corpus.",
            field="calibration_text",
        )
    return facts.default_text if name == "auto" else name


def check_formats(config: ProfileJob, facts: ModelFacts) -> None:
    """Raise `ConfigError` if a format fits no layer, or a measured format is not a candidate."""
    formats = parsed(config.formats)
    if not 0 < len(formats) <= MAX_FORMATS:
        raise ConfigError(
            f"{len(formats)} formats are given.",
            "",
            f"Choose 1 to {MAX_FORMATS}.",
            field="formats",
        )
    columns = {layer.columns for layer in facts.linears}
    if unfit := [format for format in formats if not any(format.fits(n) for n in columns)]:
        inputs = ", ".join(map(str, sorted(columns)))
        raise ConfigError(
            f"{unfit[0]} fits no layer of this model.",
            f"The layers have {inputs} inputs.",
            "Choose a group size that divides these numbers.",
            field="formats",
        )
    if missing := [format for format in config.measured_formats if format not in formats]:
        raise ConfigError(
            f"{missing[0]} is not among the formats.",
            "",
            "Add it to the formats, or do not measure it.",
            field="measured",
        )
    if config.windows > config.heldout_windows:
        raise ConfigError(
            f"{config.windows} windows per measurement are too many.",
            f"Only {config.heldout_windows} windows are held out.",
            "Hold out more text, or measure on fewer windows.",
            field="windows",
        )


def work(config: ProfileJob, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights, head = facts.linear_weights, facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    heldout = config.heldout_windows * context
    # a measurement runs half of the blocks on average
    measured = (weights / 2 + head) * context * config.windows
    measurements = len(config.measured_formats) * len(facts.linears) * measured
    formats = len(config.all_formats)
    candidates = candidate_products(facts, formats, config.segments * context)
    estimates = (3.0 + formats) * weights * heldout
    return [
        PhaseWork("dense", weights * heldout),
        PhaseWork("gradients", 3.0 * (weights + head) * heldout),
        PhaseWork("layers", candidates + estimates + measurements),
        PhaseWork("decoding", decoded_bytes(facts, formats * TIMED_TOKENS), "memory"),
    ]


def candidate_products(facts: ModelFacts, formats: int, tokens: int) -> float:
    """Return the number of multiply-adds of a pass over `tokens` that makes every layer in every
    format."""
    solve = sum(x.rows * x.columns**2 for x in facts.linears)
    return facts.linear_weights * tokens + 1.5 * formats * solve


def memory_bytes(
    config: ProfileJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Return True if the model is streamed, and the peak memory in bytes by purpose."""
    context = context_length(config, facts)
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments,
        "context": context,
        "batch": 4,
        "streams": 1,
        "stages": 2,
        "parallel": memory.parallel_batches(facts, config.used_threads),
        "on_disk": False,
    }
    heldout = memory.activation_memory(facts, config.heldout_windows, context, dtype)
    state_bytes = (2 * facts.blocks + 1) * heldout  # states and gradients between blocks
    traced = 4 * config.heldout_windows * context * memory.traced_values(facts)
    logits = 4 * MEASURE_COPIES * facts.vocabulary * context
    total = memory.memory_needed(facts, **sizes) + state_bytes + traced + logits
    streamed = total > memory.STREAMING_THRESHOLD * available and not facts.support.stream
    parts = memory.memory_parts(facts, streamed=streamed, **sizes)
    # including repacked weights
    decoder = {} if streamed else {DECODER: 4 * facts.parameters}
    heldout_parts = {"held-out states": state_bytes, "held-out layers": traced, "logits": logits}
    return streamed, parts | decoder | heldout_parts


KIND = Kind(
    name=NAME,
    title="Sensitivity",
    summary="Measure the loss of each layer in each format; find the best mix for a budget.",
    config=ProfileJob,
    requirements=requirements,
    run="jobs.profile.run:run",
    order=55,
    main_fields=("formats", "measured"),
    has_models=False,
    stages={DENSE: "Dense"},
    presets={
        "quick look": {"context": 256, "segments": 16},
        "default": {"context": 256},
        "measured": {"context": 256, "windows": 2, "measured": "int3-g64, 50%"},
        "thorough": {
            "context": 512,
            "holdout": 0.5,
            "windows": 4,
            "measured": "int2-g64, int3-g64, int4-g64, 50%, 70%, 2:4",
        },
    },
)
