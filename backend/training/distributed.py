"""Several processes of one machine that train together; mostly there is just one.

The first process runs the whole job. The others wait until it tells them what to train, and take
their share of the rows of each step. Gradients are summed, so parameters stay the same everywhere;
the first alone reports, judges and saves. With one process nothing here does anything.

Processes meet by a file and talk over the loopback interface: gloo opens no port to other machines.
Who waits for another process waits without a limit: it may be judging a model. Whoever has started
the processes ends all when one of them dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist

from backend.errors import CancelledError
from backend.reporter import Reporter

WAIT = timedelta(days=365)
LOOPBACK = "127.0.0.1"
MOST_LETTERS = 64  # of the name of a task
MOST_AXES = 4  # of rows

LEAVE_S, LOOK_S = 5.0, 0.002

Rows = TypeVar("Rows", Tensor, list[int])


class _Here:
    """This process among the others."""

    number = 0
    rendezvous = Path()


def join(number: int, world: int, rendezvous: Path) -> None:
    """Meet the other processes; returns when all are there. The device of this one has to be set.

    Args:
        number: of this process, from 0; world: how many there are.
        rendezvous: a file on this machine that does not exist until the first of them makes it.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={_loopback()}")  # which it leaves out by itself
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _Here.number, _Here.rendezvous = number, rendezvous
    # by its path, not as an address: it may hold any letter
    store = dist.FileStore(str(rendezvous), world)  # type: ignore[attr-defined]
    store.set_timeout(WAIT)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=WAIT)


def _loopback() -> str:
    """The name of the network interface that only this machine reaches."""
    found = psutil.net_if_addrs().items()
    return next(name for name, given in found if LOOPBACK in (each.address for each in given))


def leave() -> None:
    """End the work with others; of this process nothing else ends. Returns when all are here, or
    after a while: a connection that one closes early is an error for who still reads from it."""
    if not dist.is_initialized():
        return
    here = [
        _Here.rendezvous.with_name(f"{_Here.rendezvous.name}-left-{n}") for n in range(world_size())
    ]
    with suppress(OSError):  # the folder may have been removed meanwhile
        here[_Here.number].touch()
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline and not all(each.exists() for each in here):
        time.sleep(LOOK_S)
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; it keeps it when it has left the others."""
    return _Here.number


def is_first() -> bool:
    """Whether this is the process that reports, judges and saves."""
    return rank() == 0


# tasks ------------------------------------------------------------------------------------------


def announce(task: str) -> None:
    """Have the other processes begin a task, which this one then begins, too. Empty: none is left,
    and this process goes on alone."""
    if world_size() > 1:
        letters = task.encode().ljust(MOST_LETTERS, b"\0")
        dist.broadcast(torch.tensor([*letters], dtype=torch.uint8), 0)
        if not task:
            leave()


def tasks() -> Iterator[str]:
    """The tasks that the first process tells this one, until none is left."""
    while world_size() > 1:
        letters = torch.zeros(MOST_LETTERS, dtype=torch.uint8)
        dist.broadcast(letters, 0)
        if task := bytes(letters.tolist()).rstrip(b"\0").decode():
            yield task
        else:
            leave()


def broadcast_rows(rows: Tensor) -> None:
    """Give all processes int64 rows, which they receive by `receive_rows`."""
    if world_size() > 1:
        shape = [*rows.shape, *[0] * (MOST_AXES - rows.dim())]
        dist.broadcast(torch.tensor(shape), 0)
        dist.broadcast(rows.cpu().long().contiguous(), 0)


def receive_rows() -> Tensor:
    """The rows that the first process gives."""
    shape = torch.zeros(MOST_AXES, dtype=torch.long)
    dist.broadcast(shape, 0)
    rows = torch.empty(shape[shape > 0].tolist(), dtype=torch.long)
    dist.broadcast(rows, 0)
    return rows


# steps ------------------------------------------------------------------------------------------


def shard(rows: Rows) -> Rows:
    """This process's part of the rows of a step: every `world`th."""
    return rows[rank() :: world_size()] if world_size() > 1 else rows


def all_reduce_gradients(total: float, parameters: Iterable[nn.Parameter]) -> float:
    """Sum the gradients of all processes in place, in float32; one that no process has stays None.

    Returns:
        The sum of all `total`.
    """
    if world_size() == 1:
        return total
    held = [*parameters]
    counted = torch.tensor([total, *(p.grad is not None for p in held)], dtype=torch.float64)
    dist.all_reduce(counted)
    reached = [p for p, times in zip(held, counted[1:].tolist(), strict=True) if times]
    if reached:
        flat = torch.cat([_gradient(p).flatten().float() for p in reached])
        dist.all_reduce(flat)
        for p, part in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)
    return float(counted[0])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def stop_if_any_asked(reporter: Reporter) -> None:
    """Raise `CancelledError` in all processes, which then have left each other, if cancellation was
    requested of one of them: one that left a step alone would have the others wait for it."""
    asked = reporter.should_stop()
    if world_size() > 1:
        votes = torch.tensor(int(asked))
        dist.all_reduce(votes)
        asked = bool(votes)
    if asked:
        leave()
        raise CancelledError


def broadcast_int(value: int) -> int:
    """What the first process has for `value`."""
    if world_size() == 1:
        return value
    told = torch.tensor(value)
    dist.broadcast(told, 0)
    return int(told)


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Set tensors to those of the first process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)
