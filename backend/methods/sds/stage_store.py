"""What an SDS run leaves in its checkpoints: the weights of every stage, block by block.

One checkpoint for each pass and block, and one, `run`, that says what they belong to. Weights are
float32, so that a resumed run continues bit for bit; those that 16 bits hold exactly are stored so.

    owl-0003/     nothing but facts.json
    first-0003/   dense.safetensors first.safetensors control.safetensors redense.safetensors
    second-0003/  second.safetensors sds.safetensors
    each with facts.json: errors, zeros, seconds and warnings of that block
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import NotFoundError
from backend.methods.sds.config import STAGE_LABELS, SDSStage
from backend.models.block_offload import put
from backend.models.blocks import decoder_blocks

Weights = dict[str, Tensor]  # module name inside the block -> [out, in], float32

SURVEY, FIRST_PASS, SECOND_PASS = "owl", "first", "second"
HALVES = (torch.float16, torch.bfloat16)
PASS_OF = {
    SDSStage.DENSE: FIRST_PASS,
    SDSStage.FIRST: FIRST_PASS,
    SDSStage.CONTROL: FIRST_PASS,
    SDSStage.REDENSE: FIRST_PASS,
    SDSStage.SECOND: SECOND_PASS,
    SDSStage.SDS: SECOND_PASS,
}


@dataclass
class BlockReport:
    """What one pass found out about one block.

    Attributes:
        errors: stage -> module -> relative output error.
        zeros: stage -> exact zeros in the block's linears, of `weights` in all.
        seconds: step -> time spent.
        warnings: what a person should know.
        outliers: share of weights whose score is far above the block's mean.
    """

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outliers: float = 0.0


class SDSStageStore:
    """The checkpoints of one run."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def holds(self, name: str, block: int) -> bool:
        """Whether pass `name` has finished `block` and its checkpoint is whole."""
        return self._checkpoints.find(_folder(name, block)) is not None

    def save(
        self, name: str, block: int, stages: dict[SDSStage, Weights], facts: BlockReport
    ) -> None:
        """Stores all that pass `name` made of `block`, at once."""
        with self._checkpoints.write(_folder(name, block)) as folder:
            for stage, weights in stages.items():
                narrow = {module: _narrow(W) for module, W in weights.items()}
                save_file(narrow, folder / f"{stage}.safetensors")
            (folder / "facts.json").write_text(json.dumps(asdict(facts)))

    def facts(self, name: str, block: int) -> BlockReport:
        """What pass `name` noted about `block`, which must be finished."""
        return BlockReport(**json.loads((self._whole(name, block) / "facts.json").read_text()))

    def weights(self, stage: SDSStage, block: int, device: str = "cpu") -> Weights:
        """The weights of `block` at `stage`.

        Raises:
            NotFound: the run has not made that stage, or its file is damaged.
        """
        stored = load_file(self.require(stage, block), device=device)
        return {module: W.float() for module, W in stored.items()}

    def require(self, stage: SDSStage, block: int) -> Path:
        """The file of `block` at `stage`.

        Raises:
            NotFound: the run has not made that stage, or its file is damaged.
        """
        file = self._whole(PASS_OF[stage], block) / f"{stage}.safetensors"
        if not file.exists():
            raise _missing(stage, block)
        return file

    def _whole(self, name: str, block: int) -> Path:
        folder = self._checkpoints.find(_folder(name, block))
        if folder is None:
            raise _missing(name, block)
        return folder

    def claim(self, identity: str, precision: str) -> str:
        """Ties the checkpoints to `identity` and returns the precision the run goes in.

        The first call settles it, so that a run resumed elsewhere goes on in the same precision.

        Raises:
            ConfigRefused: the checkpoints belong to another run.
        """
        return self._checkpoints.claim(identity, precision)


def _folder(name: str, block: int) -> str:
    return f"{name}-{block:04d}"


def _missing(what: str, block: int) -> NotFoundError:
    return NotFoundError(
        f"{STAGE_LABELS.get(what, f'The {what} pass')} of block {block} is not stored.",
        "The run did not make it, has not come that far, or the file was damaged.",
        "Let the run finish, or run it anew.",
    )


def _narrow(W: Tensor) -> Tensor:
    """`W` in 16 bits if no value changes by it."""
    halves = (W.to(dtype) for dtype in HALVES)
    return next((half for half in halves if torch.equal(half.float(), W)), W)


def install(model: PreTrainedModel, checkpoints: Checkpoints, stage: SDSStage) -> None:
    """Makes `model` the one of `stage`.

    Raises:
        NotFound: the run in `checkpoints` has no such stage (yet).
    """
    store = SDSStageStore(checkpoints)
    for block in range(len(decoder_blocks(model))):
        store.require(stage, block)
    put(model, lambda block: store.weights(stage, block, str(model.device)))
