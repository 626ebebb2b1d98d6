"""The config of an evaluation."""

from backend.options import option
from jobs.fields.model import DEFAULT_MODEL, ModelConfig, absolute
from jobs.fields.quality import QualityConfig
from jobs.fields.saved_models import is_run, model_before
from jobs.fields.text import EvaluationText
from jobs.fields.types import ModelSpec
from jobs.kind import JobConfig

NAME = "evaluation"
DENSE, MODEL = "dense", "model"  # the two stages
LABELS = {DENSE: "Dense", MODEL: "Model"}


class EvaluationJob(ModelConfig, EvaluationText, QualityConfig, JobConfig):
    """Which model, its dense reference, and what is measured."""

    model: ModelSpec = option(DEFAULT_MODEL, "Run or model")
    """A run that saved a model, such as sds-0042; or a name from the list, a hub id, a folder."""
    dense: str = option("", "Dense model", max_length=300, choices="saved")
    """The reference. Empty: the model the run started from; a model that is not a run is then
    measured alone."""
    batch: int = option(4, "Batch size", ge=1, le=256, unit="windows", advanced=True)
    """Windows per forward pass. More are faster on a GPU and need more memory."""
    speed: bool = option(True, "Measure speed")
    """Time decoding with both models in turn."""


def measured_models(config: EvaluationJob) -> dict[str, str]:
    """Stage -> spec of the model measured at it, the dense one first if there is one. Raises
    ConfigError: the run is not there, or has saved no model."""
    spec, dense = config.model, absolute(config.dense)
    if is_run(spec):
        dense = dense or model_before(spec)
    return ({DENSE: dense} if dense else {}) | {MODEL: spec}
