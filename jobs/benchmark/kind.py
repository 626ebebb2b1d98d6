"""The kind `benchmark`: config, requirements and key figure of decoding benchmarks."""

from pydantic import field_validator

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME_BYTES, weight_memory
from backend.options import Options, option
from backend.store.states import State
from backend.text.prompts import require_prompts
from jobs.benchmark.report import LABELS, LOOKUP, MIN_GAIN, VANILLA, decoder_label
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.drafters import drafter_bytes, drafter_config, parse_drafters
from jobs.fields.gguf import check_source, exported_type, parse_types, require_llama_cpp
from jobs.fields.models import decodable_model
from jobs.fields.text import PromptConfig, prompt_set
from jobs.fields.types import ModelConfig, NewTokens, Precision, TreeSize
from jobs.kind import JobConfig, KeyFigure, Kind, Requirements, StageStyle, Values
from jobs.limits import require_context, run_memory
from jobs.metrics import SPEED_UP, TOKENS_PER_SECOND
from jobs.wording import distinguishable, times

NAME = "benchmark"
VANILLA_ALONE = "Only vanilla decoding is timed. Add a decoder to compare it with."


class TimingConfig(Options):
    """Decoders to compare, and the timing procedure."""

    drafters: str = option("", "Drafters", max_length=300, choices="drafters", many=True)
    """Drafters trained for this model, such as amphista-0007. Each is timed alone and as the
    fallback of prompt lookup."""
    lookup: bool = option(True, "Prompt lookup")
    """Also time prompt-lookup decoding, which needs no training."""
    pytorch: bool = option(False, "PyTorch loop")
    """Also time vanilla decoding in PyTorch, one token per pass as in transformers. Other decoders
    use the native decoder on CPUs if it supports the model."""
    llama_cpp: str = option("", "llama.cpp", max_length=100, choices="gguf_types", many=True)
    """Also time llama.cpp with these GGUF types, such as BF16 or Q4_0. Needs the package
    llama-cpp-python. Empty: none."""
    count: int = option(12, "Number of prompts", ge=1, le=10_000, unit="prompts")
    """Prompts are taken from each task of the set in turn."""
    max_new_tokens: NewTokens = option(64, ge=2, le=32768)
    rounds: int = option(3, "Rounds", ge=1, le=100, unit="rounds")
    """Timing repetitions in shuffled order, after a warm-up round."""
    nodes: TreeSize = 0
    precision: Precision = "auto"

    @field_validator("llama_cpp")
    @classmethod
    def _known_types(cls, text: str) -> str:
        return ", ".join(parse_types(text))


class BenchmarkJob(ModelConfig, TimingConfig, PromptConfig, JobConfig):
    """Base model, decoders and prompts."""


def requirements(config: BenchmarkJob) -> Requirements:
    """See `Kind.requirements`."""
    model = decodable_model(config.model, config.precision)
    facts, device = model.facts, run_memory("cpu" if model.packed else config.device)
    drafters = parse_drafters(config.drafters, config.model, "drafters")
    require_context(config.max_new_tokens, facts, "Responses", "max_new_tokens", prompt=True)
    for job in drafters:
        if job.state != State.SUCCEEDED:  # there is no tree yet
            continue
        largest = 1 + len(drafter_config(job)["growth"])
        if config.nodes > largest:
            raise ConfigError(
                f"A tree of {config.nodes} nodes is too large for {job.run}.",
                f"Its largest tree has {largest} nodes: others were never accepted on held-out "
                "text.",
                f"Choose {largest} or fewer, or 0.",
                "nodes",
            )
    require_prompts(prompt_set(config, facts), "prompts")
    types = parse_types(config.llama_cpp)
    if types:
        require_llama_cpp("llama_cpp")
        check_source(model.source)
    for type in types:
        exported_type(type, model, "llama_cpp")
    compared = drafters or config.lookup or config.pytorch or config.llama_cpp
    return Requirements(
        title=facts.title,
        work=work(config, facts, len(drafters)),
        memory={
            "runtime": RUNTIME_BYTES,
            "models": weight_memory(
                facts, device.dtype(config.precision.replace("auto", "bfloat16"))
            ),
            "drafters": sum(map(drafter_bytes, drafters)),
            "llama.cpp": len(types) * weight_memory(facts),
        },
        device=device,
        warnings=() if compared else (VANILLA_ALONE,),
    )


def work(config: BenchmarkJob, facts: ModelFacts, drafters: int) -> list[PhaseWork]:
    """See `Requirements.work`."""
    other_decoders = config.pytorch + len(parse_types(config.llama_cpp)) + config.lookup
    decoders = 1 + other_decoders + 2 * drafters  # alone, and as fallback of prompt lookup
    responses = decoders * config.count * (1 + config.rounds)
    return [PhaseWork("compare", decoded_bytes(facts, responses * config.max_new_tokens), "memory")]


def key_figure(values: Values, kept_stage: str = "") -> KeyFigure | None:
    """Return the speed-up of the fastest decoder over vanilla decoding, with both speeds, and that
    of prompt lookup, which needs no training."""
    speeds = {stage: v for (stage, name), v in values.items() if name == TOKENS_PER_SECOND}
    fastest, gain = speeds.pop("run", None), values.get(("run", SPEED_UP))
    vanilla = speeds.get(VANILLA)
    if fastest is None or vanilla is None or gain is None:
        return None
    if gain < 1 + MIN_GAIN:
        text = f"No decoder was faster than plain decoding: {vanilla:.0f} tokens per second."
        return KeyFigure(times(1.0), "the speed of plain decoding", text)
    fastest_text, vanilla_text = distinguishable([fastest, vanilla], places=0)
    label = decoder_label(next((s for s, speed in speeds.items() if speed == fastest), "a drafter"))
    decoder = f"{label[0].lower()}{label[1:]}"
    alone = None if label == LABELS[LOOKUP] else values.get((LOOKUP, SPEED_UP))
    rival = f"; prompt lookup alone {times(alone)}" if alone else ""
    return KeyFigure(
        times(gain),
        f"with {decoder}{rival}",
        f"{fastest_text} tokens per second with {decoder}, {vanilla_text} without{rival}.",
    )


KIND = Kind(
    name=NAME,
    title="Benchmark",
    summary="Measure decoding speed on this machine, with and without each drafter.",
    config=BenchmarkJob,
    requirements=requirements,
    run="jobs.benchmark.run:run",
    order=40,
    main_fields=("drafters", "lookup", "max_new_tokens"),
    has_models=False,
    stages=LABELS,
    stage_label=decoder_label,
    styles={VANILLA: StageStyle("gray")},
    key_figure=key_figure,
    key_metric=SPEED_UP,
    presets={
        "quick look": {"count": 6, "max_new_tokens": 32, "rounds": 2},
        "default": {},
        "thorough": {"count": 48, "max_new_tokens": 128, "rounds": 5},
    },
)
