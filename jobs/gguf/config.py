"""The config of an export."""

from backend.export.gguf.types import EmbeddingType, GGUFType
from backend.options import option
from jobs.fields.model import ModelConfig
from jobs.kind import JobConfig

NAME, MODEL = "gguf", "model"  # the kind, and its only stage
FOLDER = "GGUF"  # and the kind of its artefact


class GGUFJob(ModelConfig, JobConfig):
    """Which model, and how its weights are stored."""

    type: GGUFType = option("auto", "Type")
    """Of the linear layers. auto: the smallest that holds the codes of a quantised model as they
    are; 16 bits for any other. Q4_0 and Q4_1 have 4.5 and 5 bits a weight, Q8_0 has 8.5."""
    embedding: EmbeddingType = option("auto", "Embedding and head")
    """auto: quantised ones as they are; beside other codes what is stored; else as the linear
    layers, but 8 bits beside 4. Any other type rounds them to nearest, which no run has
    measured."""
