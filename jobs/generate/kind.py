"""Text generation as a kind of job, and its config as a request to the API."""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.decoding.limits import MIN_PENALTY, Temperature
from backend.errors import ModelError, for_field
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, weight_memory
from backend.options import option
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.drafters import MAX_SIDES, GenerationSide, read_sides
from jobs.fields.models import decodable_model, saved_config
from jobs.fields.types import DEFAULT_MODEL, NewTokens, Precision, TreeSize
from jobs.kind import JobConfig, KeyFigure, Kind, Requirements, Values
from jobs.limits import require_context
from jobs.metrics import TOKENS_PER_SECOND
from jobs.serving.openai_format import ChatBody

NAME = "generate"
STOPS = "|"
ASKED = "Explain in three sentences why the sky is blue."
RENAMED = {"max_new_tokens": "max_tokens", "chat": "chat_template"}  # setting -> field of a body
MODEL_MARGIN = 1.3  # memory of a drafter and its cache beside the weights


class GenerateJob(JobConfig):
    """Prompt, models and sampling."""

    prompt: str = option(ASKED, "Prompt", min_length=1, max_length=8000, lines=4)
    """Sent to every selected model."""
    sides: str = option(
        DEFAULT_MODEL, "Models and drafters", min_length=1, max_length=1000, many=True
    )
    """1–4 models, compressed runs or Amphista drafters."""
    system: str = option("", "System prompt", max_length=4000, lines=3)
    """Tells the models how to answer."""
    max_new_tokens: NewTokens = option(96, ge=1, le=4096)
    temperature: Temperature = option(0.0, "Temperature", ge=0, le=5)
    """0: greedy decoding."""
    top_k: int = option(0, "Top-k", ge=0, le=10**6, advanced=True)
    """Samples from the k likeliest tokens. 0: from all."""
    top_p: float = option(1.0, "Top-p", gt=0, le=1, advanced=True)
    """Samples from the smallest set of tokens with this total probability."""
    repetition_penalty: float = option(
        1.0, "Repetition penalty", ge=MIN_PENALTY, le=10, advanced=True
    )
    """1: none. Each draft token is penalised by its own path."""
    stop: str = option("", "Stop strings", max_length=300, advanced=True)
    """Strings that end a response, separated by |"""
    chat: bool = option(True, "Chat template", advanced=True)
    """Applies the model's chat template, if it has one."""
    nodes: TreeSize = option(0, unit="nodes", advanced=True)
    lookup: bool = option(False, "Prompt lookup first")
    """Prompt-lookup decoding: draft by n-gram match in the context; fall back to the drafter."""
    precision: Precision = "auto"


def chat_body(
    settings: Mapping[str, Any], model: str, said: Sequence[Mapping[str, str]]
) -> ChatBody:
    """The streamed answer of a model to what was `said`; `settings`: of a `GenerateJob`."""
    system = str(settings.get("system", ""))
    values = {RENAMED.get(name, name): value for name, value in settings.items()}
    kept = {name: value for name, value in values.items() if name in ChatBody.model_fields}
    first = [{"role": "system", "content": system}] if system.strip() else []
    stop = [*filter(None, str(settings.get("stop", "")).split(STOPS))]
    about = {"model": model, "messages": [*first, *said], "stop": stop}
    return ChatBody.model_validate(kept | about | {"stream": True, "details": True})


def requirements(config: GenerateJob) -> Requirements:
    sides = read_sides(config.sides)
    models = [side_facts(side, config) for side in sides]
    shortest = min(models, key=lambda facts: facts.context)
    require_context(config.max_new_tokens, shortest, "Responses", "max_new_tokens", prompt=True)
    largest = max(models, key=weight_memory)
    return Requirements(
        title=largest.title,
        work=[
            PhaseWork("generate", decoded_bytes(x, config.max_new_tokens), "memory") for x in models
        ],
        memory={"runtime": RUNTIME, "model": int(MODEL_MARGIN * weight_memory(largest))},
    )


def side_facts(side: GenerationSide, config: GenerateJob) -> ModelFacts:
    """The facts of the model that decodes for a side, whose drafter is there; names `sides`."""
    if side.drafter:
        saved_config(side.drafter, side.name, "sides")
    with for_field("sides", ModelError):
        return decodable_model(side.model, config.precision, "sides").facts


def brief(values: Values, kept: str = "") -> KeyFigure | None:
    speeds = [speed for (_, name), speed in values.items() if name == TOKENS_PER_SECOND]
    texts = f"{len(speeds)} text{'s' if len(speeds) > 1 else ''}"
    return KeyFigure(texts, f"at up to {max(speeds):.0f} tokens/s", "") if speeds else None


KIND = Kind(
    name=NAME,
    title="Generate text",
    summary="Send one prompt to up to four models or drafters, and watch their responses.",
    config=GenerateJob,
    requirements=requirements,
    run="jobs.generate.run:run",
    order=50,
    main_fields=("prompt", "sides", "max_new_tokens"),
    has_models=False,
    brief=brief,
    stages={f"side-{n}": f"Side {n}" for n in range(1, MAX_SIDES + 1)},
)
