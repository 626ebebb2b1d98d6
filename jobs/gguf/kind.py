"""The export of a saved model as a kind of job."""

from collections import Counter

from backend.export.gguf.types import EmbeddingType, GGUFType
from backend.export.sizes import GGUF_BITS, gguf_bytes, growth
from backend.models.families.stored import together as alike
from backend.models.memory import RUNTIME
from backend.options import option
from backend.printable import readable_bytes
from jobs.estimates import PhaseWork
from jobs.fields.gguf import check_source, exported_embedding, exported_type
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements

NAME, MODEL = "gguf", "model"  # the kind, and its only stage
FOLDER = "GGUF"  # and the kind of its artifact
COPIES = 6  # of the largest matrix: as stored, float32, and what rounding makes of it


class GGUFJob(ModelConfig, JobConfig):
    """Which model, and how its weights are stored."""

    type: GGUFType = option("auto", "Type")
    """Of the linear layers. auto: the smallest that holds the codes of a quantized model as they
    are; 16 bits for any other. Q4_0 and Q4_1 have 4.5 and 5 bits a weight, Q8_0 has 8.5."""
    embedding: EmbeddingType = option("auto", "Embedding and head")
    """auto: quantized ones as they are; beside other codes what is stored; else as the linear
    layers, but 8 bits beside 4. Any other type rounds them to nearest, which no run has
    measured."""


def requirements(config: GGUFJob) -> Requirements:
    base = resolve_model(config.model)
    check_source(base.source)
    type = exported_type(config.type, base)
    embedding = exported_embedding(config.embedding, type, base)
    together = Counter[str]()  # all experts of a block are written at once
    for x in (*base.facts.linears, *base.facts.embeddings):
        together[alike(x.name)] += x.weights
    largest = max(together.values())
    sizes = base.facts.bytes, gguf_bytes(base.facts, type, embedding, base.layout)
    held = 2 * base.facts.parameters if base.packed else 0
    return Requirements(
        title=base.facts.title,
        work=work(base),
        memory={"runtime": RUNTIME, "codes": held, "matrix": 4 * COPIES * largest},
        sizes=(*sizes, base.facts.parameters),
        field_warnings=larger(config, base, sizes, type, embedding),
    )


def larger(
    config: GGUFJob, base: ResolvedModel, sizes: tuple[int, int], type: str, embedding: str
) -> dict[str, str]:
    """A warning of a file larger than its source, beside the field that would make it smaller."""
    small = min(GGUF_BITS, key=GGUF_BITS.__getitem__)
    field, do = "type", f"Choose {small} for a smaller one."
    if type == small or base.layout:
        field, do = "embedding", "Embedding and head stay as they are."
        smaller = gguf_bytes(base.facts, type, "Q8_0", base.layout)
        if config.embedding == "auto" and smaller < sizes[1]:
            do = f"With Q8_0 for embedding and head it is {readable_bytes(smaller)}."
    why = growth(*sizes, do)
    return {field: why} if why else {}


def work(base: ResolvedModel) -> list[PhaseWork]:
    """See `Requirements.work`."""
    return [PhaseWork("write", 4.0 * base.facts.parameters, "memory")]


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
