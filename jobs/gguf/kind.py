"""The export of a saved model as a kind of job."""

from jobs.gguf.config import MODEL, NAME, GGUFJob
from jobs.gguf.estimate import requirements
from jobs.kind import Kind

KIND = Kind(
    name=NAME,
    title="GGUF export",
    summary="Write a model as a GGUF file, for llama.cpp and the programs built on it.",
    config=GGUFJob,
    requirements=requirements,
    run="jobs.gguf.run:run",
    order=80,
    main_fields=("type", "embedding"),
    has_models=False,
    stages={MODEL: "Model"},
)
