"""Checkpoints of a run (tensors as safetensors, other data as JSON), and the base of resumable
passes over the decoder blocks.

Each finished block is a checkpoint. A resumed pass replays finished blocks: it runs them forward
with their stored weights, which gives the same hidden states bit for bit, and solves only the
missing blocks. Blocks after the last missing block are skipped."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
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
    """Checkpoints of one run.

    Args:
        checkpoints: folder of checkpoints.
        label: (checkpoint, file) -> name in messages.
        device: device to load tensors to.
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
        """Return True if checkpoint `name` exists and is intact."""
        return self._checkpoints.find(name) is not None

    def save_files(
        self, name: str, files: Iterable[tuple[str, Tensors]], facts: Mapping[str, Any]
    ) -> None:
        """Write checkpoint `name`, replacing an existing one.

        Args:
            name: name of the checkpoint.
            files: file name without suffix, and its tensors. One file is in memory at a time.
            facts: JSON data.
        """
        with self._checkpoints.write(name) as folder:
            for file, tensors in files:
                contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
                save_file(contiguous, folder / f"{file}.safetensors")
            (folder / FACTS).write_text(json.dumps(facts))

    def save(self, name: str, tensors: Tensors, **facts: Any) -> None:
        """Write checkpoint `name` with all tensors in one file; `facts` are its JSON data."""
        self.save_files(name, [(TENSORS, tensors)], facts)

    def facts(self, name: str) -> dict[str, Any]:
        """Load the JSON data of checkpoint `name`.

        Raises:
            NotFoundError: the checkpoint does not exist.
        """
        return dict(json.loads((self._folder(name) / FACTS).read_text()))

    def tensors(self, name: str, prefix: str = "", file: str = TENSORS) -> dict[str, Tensor]:
        """Load the tensors in a file of checkpoint `name` whose names start with `prefix`, and
        remove the prefix from the names.

        Raises:
            NotFoundError: the checkpoint does not exist.
        """
        with safe_open(self.require(name, file), framework="pt", device=self._device) as opened:
            keys = [key for key in opened.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): opened.get_tensor(key) for key in keys}

    def require(self, name: str, file: str = TENSORS) -> Path:
        """Path of a tensor file of checkpoint `name`.

        Raises:
            NotFoundError: the file does not exist.
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
            "The run does not produce it, has not reached it, or the file is damaged.",
            "Wait for the run to finish, or start it again.",
        )


def block_name(name: str, block: int) -> str:
    """Name of the checkpoint of one block of pass `name`."""
    return f"{name}-{block:04d}"


class BlockWalk(ABC):
    """Base of a resumable pass over all decoder blocks.

    Attributes:
        last: last block to solve, beyond which no hidden states are needed.
    """

    last = -1

    def walk(self, blocks: int) -> None:
        """Solve the blocks that are not stored yet, and replay stored blocks where needed.

        Args:
            blocks: number of decoder blocks.
        """
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
        """Return True if `block` is stored."""

    @abstractmethod
    def open(self) -> None:
        """Prepare the hidden states before block 0; called only if a block is missing."""

    @abstractmethod
    def solve(self, block: int) -> None:
        """Process `block`, store it, and advance the hidden states past it."""

    @abstractmethod
    def replay(self, block: int) -> None:
        """Advance the hidden states past a stored block."""

    @abstractmethod
    def report(self, block: int, solved: bool) -> None:
        """Report progress after `block`."""
