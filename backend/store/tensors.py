"""Histograms and profiles of a run's tensors, as arrays.

This module is separate from `queries`, so that listing runs does not import numpy."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
from sqlalchemy import select

from backend.statistics.tensors import BASE_STATISTICS, QUANTILES, TensorProfile, TensorSnapshot
from backend.store.queries import job_id
from backend.store.session import fetched_value, reading
from backend.store.tables import ProfileRow, TensorRow

R = TypeVar("R")
T = TypeVar("T")


def tensor_snapshots(run: str | int, tensor: str) -> list[TensorSnapshot]:
    """Statistics and histogram of one tensor at all stages, by step; damaged rows are omitted."""
    query = select(TensorRow).where(TensorRow.job_id == job_id(run), TensorRow.tensor == tensor)
    with reading() as session:
        rows = session.scalars(query.order_by(TensorRow.step, TensorRow.stage))
        return _readable(rows, _snapshot)


def first_snapshots(run: str | int) -> list[TensorSnapshot]:
    """Statistics and histogram of a run's first tensor at all stages, by step."""
    first = select(TensorRow.tensor).where(TensorRow.job_id == job_id(run))
    tensor = fetched_value(first.order_by(TensorRow.tensor).limit(1))
    return tensor_snapshots(run, tensor) if tensor else []


def run_snapshots(run: str | int) -> Iterator[TensorSnapshot]:
    """Statistics and histograms of all tensors at all stages, by step; damaged rows are omitted.

    Rows are read during the iteration."""
    query = select(TensorRow).where(TensorRow.job_id == job_id(run)).order_by(TensorRow.step)
    with reading() as session:
        for row in session.scalars(query.execution_options(yield_per=500)):
            yield from _readable([row], _snapshot)


def _readable(rows: Iterable[R], read: Callable[[R], T]) -> list[T]:
    """The decoded rows, without damaged ones."""
    values: list[T] = []
    for row in rows:
        with suppress(zlib.error, ValueError, TypeError):
            values.append(read(row))
    return values


def _snapshot(row: TensorRow) -> TensorSnapshot:
    if not row.stats.keys() >= BASE_STATISTICS or len(row.quantiles) != len(QUANTILES):
        raise ValueError(f"The statistics of {row.tensor} are damaged.")
    counts = np.frombuffer(zlib.decompress(row.counts), dtype="<u4").astype(np.int64)
    return TensorSnapshot(
        row.tensor,
        row.block,
        row.module,
        row.stage,
        row.n,
        row.zeros,
        row.below,
        row.above,
        row.lo,
        row.hi,
        counts,
        row.stats,
        tuple(math.nan if value is None else value for value in row.quantiles),
        row.step,
    )


def profiles(run: str | int, tensor: str, name: str | None = None) -> list[TensorProfile]:
    """The profiles of one tensor, sorted by name, stage and step.

    Args:
        name: name of a profile; None for all profiles.
    """
    conditions = {"tensor": tensor} if name is None else {"tensor": tensor, "name": name}
    return _profiles(run, ("name", "stage", "step"), **conditions)


def module_profiles(run: str | int, module: str, name: str) -> list[TensorProfile]:
    """One profile of a module in all blocks and stages, sorted by block."""
    return _profiles(run, ("block", "step"), module=module, name=name)


def named_profiles(run: str | int, name: str) -> list[TensorProfile]:
    """One profile of all tensors at all stages, sorted by block."""
    return _profiles(run, ("block", "module"), name=name)


def _profiles(run: str | int, order: Sequence[str], **conditions: str) -> list[TensorProfile]:
    """The profiles with these column values, sorted by the columns `order`."""
    query = select(ProfileRow).filter_by(job_id=job_id(run), **conditions)
    with reading() as session:
        rows = session.scalars(query.order_by(*(getattr(ProfileRow, name) for name in order)))
        return _readable(rows, _profile)


def _profile(row: ProfileRow) -> TensorProfile:
    values = np.frombuffer(zlib.decompress(row.values), dtype="<f4").reshape(row.shape)
    return TensorProfile(row.tensor, row.block, row.module, row.stage, row.name, values, row.step)
