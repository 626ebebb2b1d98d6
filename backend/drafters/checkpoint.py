"""A trained drafter in a folder: `drafter.safetensors` (weights, scales, draft vocabulary) and
`config.json` (architecture, target model, tree, training). It works with one target model only,
known by its width, vocabulary and the sha256 of its weights; any other is rejected."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.checkpoints import changed_file
from backend.decoding.draft_tree import Growth
from backend.decoding.target_model import TargetModel, fingerprint
from backend.drafters.config import DrafterConfig, arm_of
from backend.drafters.registry import Drafter, build_drafter
from backend.errors import ConfigError, NotFoundError
from backend.models.blocks import all_finite

FORMAT = "slimscope-drafter-1"
WEIGHTS, CONFIG = "drafter.safetensors", "config.json"


@dataclass(frozen=True)
class BaseFingerprint:
    """Identity of the target model of a drafter: `name` for people, sha256 of its weights."""

    name: str
    architecture: str
    width: int
    vocabulary: int
    layers: int
    sha256: str

    @classmethod
    def of(cls, target: TargetModel, name: str = "") -> "BaseFingerprint":
        return cls(
            name,
            type(target.model).__name__,
            target.width,
            target.vocabulary,
            target.layers,
            fingerprint(target.model),
        )


@dataclass(frozen=True)
class Amphista:
    """A trained drafter as it is stored.

    Attributes:
        growth: draft paths, most valuable first, and their values (see `draft_tree`).
        figures: held-out accuracy: "top1" -> one value per head, and so on.
        training: settings; context: the longest training sequence.
    """

    config: DrafterConfig
    base: BaseFingerprint
    weights: dict[str, Tensor]
    growth: Growth
    figures: dict[str, list[float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    context: int = 0

    @property
    def arm(self) -> str:
        """Name of the ablation arm: Amphista, Medusa, ..."""
        return arm_of(self.config.model_dump())

    def bind(self, target: TargetModel) -> Drafter:
        """The module for `target`, in its dtype and on its device, in 8 bits where that runs
        natively. Raises ConfigError: it was trained for another model."""
        actual = BaseFingerprint.of(target)
        for name in ("architecture", "width", "vocabulary", "layers", "sha256"):
            expected, given = getattr(self.base, name), getattr(actual, name)
            if expected != given:
                raise ConfigError(
                    "The drafter belongs to another model.",
                    f"It was trained for {self.base.name or 'a model'}, {name} {expected}; this "
                    f"one has {given}.",
                    "Use it with the model it was trained for, or train one for this model.",
                    "drafter",
                )
        drafter = build_drafter(self.config, target, self.weights["vocabulary"], target.dtype)
        drafter.load_state_dict(self.weights)
        drafter.quantize(target)
        return drafter.requires_grad_(False).eval()

    def save(self, folder: Path) -> None:
        """Write the drafter into `folder`, which must exist."""
        save_file(self.weights, folder / WEIGHTS)
        record = {
            "format": FORMAT,
            "drafter": self.config.model_dump(),
            "base": asdict(self.base),
            "growth": [[list(path), value] for path, value in self.growth],
            "figures": self.figures,
            "training": self.training,
            "context": self.context,
        }
        (folder / CONFIG).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "Amphista":
        """The drafter in `folder`; NotFoundError where there is none, or its files are damaged."""
        if name := changed_file(Path(folder), contents=True):
            raise NotFoundError(
                f"The drafter in {folder} is damaged.",
                f"{name} has changed since it was saved.",
                "Restore the file, or train the drafter again.",
                "drafter",
            )
        try:
            record = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}")
            weights = load_file(Path(folder) / WEIGHTS)
            if bad := next((name for name, W in weights.items() if not all_finite(W)), None):
                raise ValueError(f"{bad} has values that are not finite")
            return cls(
                DrafterConfig(**record["drafter"]),
                BaseFingerprint(**record["base"]),
                weights,
                [(tuple(path), value) for path, value in record["growth"]],
                record["figures"],
                record["training"],
                record["context"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise NotFoundError(
                f"There is no drafter in {folder}.",
                f"{type(error).__name__}: {error}."[:300],
                "Name a finished run of the kind amphista, or its drafter folder.",
                "drafter",
            ) from error


def pack(
    drafter: Drafter,
    base: BaseFingerprint,
    growth: Growth,
    figures: dict[str, list[float]],
    training: dict[str, Any],
    context: int,
) -> Amphista:
    """Package a trained module for saving; weights float32, on the CPU."""
    weights = {k: v.detach().cpu().contiguous() for k, v in drafter.state_dict().items()}
    return Amphista(drafter.config, base, weights, growth, figures, training, context)
