"""Text generation as a kind of job."""

from jobs.fields.sides import MAX_SIDES
from jobs.generate.config import NAME, GenerateJob
from jobs.generate.estimate import requirements
from jobs.kind import KeyFigure, Kind, Values
from jobs.metrics import TOKENS_PER_SECOND


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
