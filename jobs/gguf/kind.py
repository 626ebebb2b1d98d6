"""The `gguf` kind of run, which exports a model as a GGUF file."""

from collections import Counter

from backend.export.gguf.types import EmbeddingType, GGUFType
from backend.export.sizes import GGUF_BITS, gguf_bytes, growth_warning
from backend.models.families.stored import tensor_name
from backend.models.memory import RUNTIME_BYTES
from backend.options import option
from backend.printable import readable_bytes
from jobs.estimates import PhaseWork
from jobs.fields.gguf import check_source, exported_embedding, exported_type
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements

NAME, MODEL = "gguf", "model"  # name of the kind; name of its only stage
FOLDER = "GGUF"  # name of the artifact and of its folder
MATRIX_COPIES = 6  # float32 copies of the largest matrix in memory while it is converted


class GGUFJob(ModelConfig, JobConfig):
    """Config of a GGUF export: the model, and the GGUF types of its weights."""

    type: GGUFType = option("auto", "Type")
    """GGUF type of the linear layers. auto: the smallest lossless type for a quantized model, 16
    bits otherwise. Q4_0, Q4_1 and Q8_0 use 4.5, 5 and 8.5 bits per weight."""
    embedding: EmbeddingType = option("auto", "Embedding and head")
    """GGUF type of the embedding and the head. auto: unchanged if the model is quantized; otherwise
    the type of the linear layers if it has 16 bits or more, else Q8_0. Quantized types round to
    nearest."""


def requirements(config: GGUFJob) -> Requirements:
    """See `Kind.requirements`."""
    model = resolve_model(config.model)
    check_source(model.source)
    linear_type = exported_type(config.type, model)
    embedding_type = exported_embedding(config.embedding, linear_type, model)
    written_weights = Counter[str]()  # GGUF stores all experts of a block in one tensor
    for matrix in (*model.facts.linears, *model.facts.embeddings):
        written_weights[tensor_name(matrix.name)] += matrix.weights
    largest_weights = max(written_weights.values())
    sizes = model.facts.bytes, gguf_bytes(model.facts, linear_type, embedding_type, model.layout)
    code_bytes = 2 * model.facts.parameters if model.packed else 0
    return Requirements(
        title=model.facts.title,
        work=work(model),
        memory={
            "runtime": RUNTIME_BYTES,
            "codes": code_bytes,
            "matrix": 4 * MATRIX_COPIES * largest_weights,
        },
        sizes=(*sizes, model.facts.parameters),
        field_warnings=size_warning(config, model, sizes, linear_type, embedding_type),
    )


def size_warning(
    config: GGUFJob,
    model: ResolvedModel,
    sizes: tuple[int, int],
    linear_type: str,
    embedding_type: str,
) -> dict[str, str]:
    """Return a warning by form field if the file would be larger than its source, else nothing."""
    smallest_type = min(GGUF_BITS, key=GGUF_BITS.__getitem__)
    field, advice = "type", f"Choose {smallest_type} for a smaller file."
    if linear_type == smallest_type or model.layout:
        field, advice = "embedding", "Embedding and head keep their precision."
        smaller_bytes = gguf_bytes(model.facts, linear_type, "Q8_0", model.layout)
        if config.embedding == "auto" and smaller_bytes < sizes[1]:
            advice = f"With Q8_0 for embedding and head: {readable_bytes(smaller_bytes)}."
    warning = growth_warning(*sizes, advice)
    return {field: warning} if warning else {}


def work(model: ResolvedModel) -> list[PhaseWork]:
    """Return the phases of an export with their estimated work."""
    return [PhaseWork("write", 4.0 * model.facts.parameters, "memory")]


KIND = Kind(
    name=NAME,
    title="GGUF export",
    summary="Export a model as a GGUF file for llama.cpp and programs built on it.",
    config=GGUFJob,
    requirements=requirements,
    run="jobs.gguf.run:run",
    order=80,
    main_fields=("type", "embedding"),
    has_models=False,
    stages={MODEL: "Model"},
)
