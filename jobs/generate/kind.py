"""Text generation as a kind of job."""

from jobs.fields.sides import MAX_SIDES
from jobs.generate.config import NAME, GenerateJob
from jobs.generate.estimate import requirements
from jobs.kind import Kind

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
    stages={f"side-{n}": f"Side {n}" for n in range(1, MAX_SIDES + 1)},
)
