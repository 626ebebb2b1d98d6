"""Storage of hidden states between two blocks: in memory, or in a file, which is unlinked, so that
its space is freed with the object, even after a kill."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import torch
from torch import Tensor


class HiddenStates(Protocol):
    """Hidden states [b, L, d], batch by batch."""

    def append(self, states: Tensor, /) -> None: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...


NewBatches = Callable[[], HiddenStates]  # creates an empty container


class HiddenStatesOnDisk:
    """Batches in a file in `folder`; read back bit-identical, to their original device."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this object)
        self._like: list[Tensor] = []  # placeholders without memory: shape and dtype
        self._device = torch.device("cpu")

    def append(self, states: Tensor, /) -> None:
        self._device = states.device
        self._like.append(torch.empty_like(states, device="meta"))
        self._file.seek(0, 2)
        self._file.write(_bytes_of(states.detach().cpu().contiguous()))

    def __iter__(self) -> Iterator[Tensor]:
        place = 0
        for like in self._like:
            states = torch.empty_like(like, device="cpu", memory_format=torch.contiguous_format)
            self._file.seek(place)
            place += self._file.readinto(_bytes_of(states))
            yield states.to(self._device)

    def __len__(self) -> int:
        return len(self._like)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def batches_in(folder: Path | None) -> NewBatches:
    """A factory of containers: files in `folder`, or lists in memory if it is None."""
    return list if folder is None else partial(HiddenStatesOnDisk, folder)
