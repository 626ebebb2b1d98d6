"""Saving and loading of trained drafters.

A drafter is a folder with `drafter.safetensors` (weights, scales, draft vocabulary) and
`config.json` (architecture, target model, tree, training). It works only with its target model,
which is identified by architecture, sizes and the sha256 of its weights.
"""

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
    """Identity of the target model of a drafter.

    Attributes:
        name: name for display.
        architecture: class of the model.
        width: hidden size.
        vocabulary: number of tokens.
        layers: number of decoder blocks.
        sha256: sha256 of the weights.
    """

    name: str
    architecture: str
    width: int
    vocabulary: int
    layers: int
    sha256: str

    @classmethod
    def of(cls, target: TargetModel, name: str = "") -> "BaseFingerprint":
        """Compute the identity of a target model."""
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
    """A trained drafter in its stored form, of any architecture.

    Attributes:
        config: architecture and size.
        base: identity of the target model.
        weights: tensors of the drafter.
        growth: draft paths with their values, most valuable first (see `draft_tree`).
        figures: held-out accuracy, such as "top1" -> one value per head.
        training: settings of the training.
        context: tokens of the longest training sequence.
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
        """Name of the architecture or ablation, such as Amphista or Medusa."""
        return arm_of(self.config.model_dump())

    def bind(self, target: TargetModel) -> Drafter:
        """Create the module for `target`, in its dtype and on its device; in 8 bits if the target
        runs natively.

        Raises:
            ConfigError: the drafter was trained for another model.
        """
        fingerprint_of_target = BaseFingerprint.of(target)
        for name in ("architecture", "width", "vocabulary", "layers", "sha256"):
            expected, actual = getattr(self.base, name), getattr(fingerprint_of_target, name)
            if expected != actual:
                raise ConfigError(
                    "The drafter belongs to another model.",
                    f"It was trained for {self.base.name or 'a model'} with {name} {expected}; "
                    f"this model has {actual}.",
                    "Use the model it was trained for, or train a drafter for this model.",
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
        """Load the drafter in `folder`.

        Raises:
            NotFoundError: there is no drafter, or its files are damaged.
        """
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
            for name, W in weights.items():
                if not all_finite(W):
                    raise ValueError(f"{name} has values that are not finite")
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
                "Enter a finished run of the kind amphista, or its drafter folder.",
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
    """Package a trained module for saving, with float32 weights on the CPU."""
    weights = {k: v.detach().cpu().contiguous() for k, v in drafter.state_dict().items()}
    return Amphista(drafter.config, base, weights, growth, figures, training, context)
