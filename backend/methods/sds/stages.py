"""What an SDS run leaves in its checkpoints: the weights of every stage, block by block.

One checkpoint for each pass and block (float32, so that a resumed run continues bit for bit), and
one, `run`, that says what they belong to:

    first-0003/   dense.safetensors first.safetensors control.safetensors redense.safetensors
    second-0003/  second.safetensors sds.safetensors
    each with facts.json: errors, zeros, seconds and warnings of that block
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConfigRefused, NotFound
from backend.methods.sds.config import STAGE_LABELS, Stage
from backend.models.blocks import block_linears, decoder_blocks

Weights = dict[str, Tensor]  # module name inside the block -> [out, in], float32

FIRST_PASS, SECOND_PASS = "first", "second"
PASS_OF = {
    Stage.DENSE: FIRST_PASS,
    Stage.FIRST: FIRST_PASS,
    Stage.CONTROL: FIRST_PASS,
    Stage.REDENSE: FIRST_PASS,
    Stage.SECOND: SECOND_PASS,
    Stage.SDS: SECOND_PASS,
}


@dataclass
class Facts:
    """What one pass found out about one block.

    Attributes:
        errors: stage -> module -> relative output error.
        zeros: stage -> exact zeros in the block's linears, of `weights` in all.
        seconds: step -> time spent.
        warnings: what a person should know.
    """

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class StageStore:
    """The checkpoints of one run."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def holds(self, name: str, block: int) -> bool:
        """Whether pass `name` has finished `block` and its checkpoint is whole."""
        return self._checkpoints.find(_folder(name, block)) is not None

    def save(self, name: str, block: int, stages: dict[Stage, Weights], facts: Facts) -> None:
        """Stores all that pass `name` made of `block`, at once."""
        with self._checkpoints.write(_folder(name, block)) as folder:
            for stage, weights in stages.items():
                save_file(weights, folder / f"{stage}.safetensors")
            (folder / "facts.json").write_text(json.dumps(asdict(facts)))

    def all_facts(self, blocks: int) -> list[Facts]:
        """What both passes noted about each of `blocks` blocks; they must be finished."""
        places = [(name, block) for name in (FIRST_PASS, SECOND_PASS) for block in range(blocks)]
        files = [self._whole(name, block) / "facts.json" for name, block in places]
        return [Facts(**json.loads(file.read_text())) for file in files]

    def weights(self, stage: Stage, block: int, device: str = "cpu") -> Weights:
        """The weights of `block` at `stage`.

        Raises:
            NotFound: the run has not made that stage, or its file is damaged.
        """
        file = self._whole(PASS_OF[stage], block) / f"{stage}.safetensors"
        if not file.exists():
            raise _missing(stage, block)
        return load_file(file, device=device)

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
        if folder := self._checkpoints.find("run"):
            settled = json.loads((folder / "run.json").read_text())
            if settled["identity"] != identity:
                raise ConfigRefused(
                    "This folder holds another run.",
                    "Its model, calibration text or config differ.",
                    "Load the dense model anew to resume, or choose an empty folder.",
                )
            return str(settled["precision"])
        with self._checkpoints.write("run") as draft:
            text = json.dumps({"identity": identity, "precision": precision})
            (draft / "run.json").write_text(text)
        return precision


def _folder(name: str, block: int) -> str:
    return f"{name}-{block:04d}"


def _missing(what: str, block: int) -> NotFound:
    return NotFound(
        f"{STAGE_LABELS.get(what, f'The {what} pass')} of block {block} is not stored.",
        "The run did not make it, has not come that far, or the file was damaged.",
        "Let the run finish, or run it anew.",
    )


def install(model: PreTrainedModel, checkpoints: Checkpoints, stage: Stage) -> None:
    """Writes the weights of `stage` into `model`, block by block.

    Raises:
        NotFound: the run in `checkpoints` has no such stage (yet).
    """
    store = StageStore(checkpoints)
    for block in range(len(decoder_blocks(model))):
        weights = store.weights(stage, block, str(model.device))
        for module, linear in block_linears(model, block).items():
            linear.write(weights[module])
