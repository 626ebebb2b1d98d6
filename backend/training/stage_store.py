"""Checkpoints of a method's run, tensors as safetensors, other data as JSON; and a pass over the
decoder blocks, one block at a time, that can be interrupted and resumed.

A finished block is a checkpoint. A resumed pass replays finished blocks: it runs them forward with
their stored weights, which gives the same hidden states bit for bit, and solves only what is
missing. Blocks after the last missing one are not run at all."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import NotFoundError

TENSORS, FACTS = "tensors", "facts.json"
Tensors = Mapping[str, Tensor]


class StageStore:
    """The checkpoints of one run.

    Args:
        label: checkpoint and file -> what messages call it.
        device: where tensors are loaded to.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        label: Callable[[str, str], str] = lambda name, file: name,
        device: str = "cpu",
    ) -> None:
        self._checkpoints, self._label, self._device = checkpoints, label, device
        self.claim = checkpoints.claim

    def holds(self, name: str) -> bool:
        """Whether checkpoint `name` exists and is intact."""
        return self._checkpoints.find(name) is not None

    def save_files(self, name: str, files: Mapping[str, Tensors], facts: Mapping[str, Any]) -> None:
        """Write checkpoint `name`, replacing an existing one.

        Args:
            files: file name without suffix -> its tensors.
        """
        with self._checkpoints.write(name) as folder:
            for file, tensors in files.items():
                contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
                save_file(contiguous, folder / f"{file}.safetensors")
            (folder / FACTS).write_text(json.dumps(facts))

    def save(self, name: str, tensors: Tensors, **facts: Any) -> None:
        """The same with one file."""
        self.save_files(name, {TENSORS: tensors}, facts)

    def facts(self, name: str) -> dict[str, Any]:
        """The JSON data of checkpoint `name`.

        Raises:
            NotFoundError: there is none.
        """
        return dict(json.loads((self._folder(name) / FACTS).read_text()))

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of checkpoint `name` that start with `prefix`, without it.

        Raises:
            NotFoundError: there are none.
        """
        with safe_open(self.require(name), framework="pt", device=self._device) as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    def require(self, name: str, file: str = TENSORS) -> Path:
        """The path of a file of tensors of checkpoint `name`.

        Raises:
            NotFoundError: there is none.
        """
        path = self._folder(name, file) / f"{file}.safetensors"
        if not path.exists():
            raise self._missing(name, file)
        return path

    def _folder(self, name: str, file: str = "") -> Path:
        folder = self._checkpoints.find(name)
        if folder is None:
            raise self._missing(name, file)
        return folder

    def _missing(self, name: str, file: str) -> NotFoundError:
        return NotFoundError(
            f"{self._label(name, file)} is not stored.",
            "The run does not make it, has not got that far, or the file is damaged.",
            "Let the run finish, or start it again.",
        )


def block_name(name: str, block: int) -> str:
    """The checkpoint of one block of pass `name`."""
    return f"{name}-{block:04d}"


class BlockWalk(ABC):
    """The order of work of one pass over all blocks.

    Attributes:
        last: the last block to solve; no hidden states are needed beyond it.
    """

    last = -1

    def walk(self, blocks: int) -> None:
        """Solve every one of `blocks` blocks that is not stored yet."""
        missing = [block for block in range(blocks) if not self.is_stored(block)]
        if missing:
            self.last = missing[-1]
            self.open()
        for block in range(blocks):
            if block in missing:
                self.solve(block)
            elif block < self.last:
                self.replay(block)
            self.report(block, solved=block in missing)

    @abstractmethod
    def is_stored(self, block: int) -> bool:
        """Whether a checkpoint holds `block`."""

    @abstractmethod
    def open(self) -> None:
        """Prepare the hidden states before block 0; called only if there is a block to solve."""

    @abstractmethod
    def solve(self, block: int) -> None:
        """Work on `block`, store it, and move the hidden states past it."""

    @abstractmethod
    def replay(self, block: int) -> None:
        """Move the hidden states past a stored block."""

    @abstractmethod
    def report(self, block: int, solved: bool) -> None:
        """Report progress after `block`."""
