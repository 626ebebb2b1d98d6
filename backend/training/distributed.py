"""Several processes of one machine that train together; mostly there is just one.

The first process runs the whole job. The others wait until it tells them what to train, and take
their share of the rows of each step. Gradients are summed, so parameters stay the same everywhere;
the first alone reports, judges and saves. With one process nothing here does anything.

Processes meet by a file and talk over the loopback interface: gloo opens no port to other machines.
Who waits for another process waits without a limit: it may be judging a model. Whoever has started
the processes ends all when one of them dies.
"""

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

TIMEOUT = timedelta(days=365)
LOOPBACK = "127.0.0.1"
LEAVE_TIMEOUT_S, POLL_S = 5.0, 0.002

Rows = TypeVar("Rows", Tensor, list[int])
T = TypeVar("T")


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
    interfaces = psutil.net_if_addrs().items()
    loopback = next(name for name, at in interfaces if LOOPBACK in (each.address for each in at))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={loopback}")  # which it leaves out by itself
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _Here.number, _Here.rendezvous = number, rendezvous
    # by its path, not as an address: it may hold any letter
    store = dist.FileStore(str(rendezvous), world)  # type: ignore[attr-defined]
    store.set_timeout(TIMEOUT)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=TIMEOUT)


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
    deadline = time.monotonic() + LEAVE_TIMEOUT_S
    while time.monotonic() < deadline and not all(each.exists() for each in here):
        time.sleep(POLL_S)
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


def broadcast(value: T) -> T:
    """What the first process has for `value`, which can be pickled."""
    held = [value]
    if world_size() > 1:
        dist.broadcast_object_list(held, 0)
    return held[0]


def announce(task: str) -> None:
    """Have the other processes begin a task, which this one then begins, too. Empty: none is left,
    and this process goes on alone."""
    if world_size() > 1:
        broadcast(task)
        if not task:
            leave()


def tasks() -> Iterator[str]:
    """The tasks that the first process tells this one, until none is left."""
    while world_size() > 1:
        if task := broadcast(""):
            yield task
        else:
            leave()


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
    every = [*parameters]
    counted = torch.tensor([total, *(p.grad is not None for p in every)], dtype=torch.float64)
    dist.all_reduce(counted)
    reached = [p for p, times in zip(every, counted[1:].tolist(), strict=True) if times]
    if reached:
        held = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
        flat = torch.cat([gradient.flatten().float() for gradient in held])
        dist.all_reduce(flat)
        for p, part in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)
    return float(counted[0])


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


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Set tensors to those of the first process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)
