"""Rows for a load test: one real run, multiplied. Nothing here was measured but the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Select, func, insert, inspect, literal, select, true

from backend.metric_key import MetricKey
from backend.store.queries import batched
from backend.store.session import now_ms, writing
from backend.store.tables import (
    Event,
    Job,
    MetricPoint,
    ProfileRow,
    Result,
    Table,
    TensorRow,
)

Rows = TypeVar("Rows", bound=Table)
BATCH = 1000


def many_runs(number: int) -> None:
    """Copy run 1 and its figures until there are `number` runs, each with figures of its own."""
    with writing() as session:
        last = session.scalar(select(func.max(Job.id))) or 0
        first = session.scalars(select(Job).where(Job.id == 1)).one()
        row = {name: getattr(first, name) for name in _columns(Job)}
        for some in batched(range(last + 1, number + 1), BATCH):
            copies = [
                row | {"id": i, "name": f"copy {i}", "config": first.config | {"seed": i}}
                for i in some
            ]
            session.execute(insert(Job), copies)
        own = {"job_id": Job.id, "value": Result.value * (1.0 + Job.id / float(number))}
        values = [own.get(name, getattr(Result, name)) for name in _columns(Result)]
        rows = select(*values).join_from(Job, Result, Result.job_id == 1).where(Job.id > last)
        session.execute(insert(Result).from_select(_columns(Result), rows))
        session.add(Event(job_id=number, at=now_ms(), type="succeeded", actor="benchmark"))


def many_tensors(number: int) -> None:
    """Copy the blocks of run 1 below one another until it has `number` tensors, or a few more."""
    with writing() as session:
        tensors = list(session.scalars(select(TensorRow).where(TensorRow.job_id == 1)))
        of_tensors = ProfileRow.job_id == 1, ProfileRow.tensor != ""  # others are of the run
        profiles = list(session.scalars(select(ProfileRow).where(*of_tensors)))
        times = -(-number // len({row.tensor for row in tensors}))
        blocks = len({row.block for row in tensors})
        session.add_all(_further_down([*tensors, *profiles], blocks, times))


def many_snapshots(each: int) -> None:
    """Give every copied run `each` of the histograms of run 1."""
    columns = _columns(TensorRow)
    first = select(TensorRow).where(TensorRow.job_id == 1).limit(each).subquery()
    copies = [Job.id if c == "job_id" else first.c[c] for c in columns]
    with writing() as session:
        rows = select(*copies).join_from(Job, first, true()).where(Job.id > 1)
        session.execute(insert(TensorRow).from_select(columns, rows))


def many_points(runs: Select[int], points: int) -> None:
    """Give the runs whose ids are selected a curve of `points` points: a slow fall with ripples."""
    ids = runs.subquery()
    step = select(literal(0, BigInteger).label("step")).cte("steps", recursive=True)
    steps = step.union_all(select(step.c.step + 1).where(step.c.step < points - 1))
    value = 1.0 / (1 + steps.c.step) + 0.01 * (steps.c.step * 7919 % 101)
    key = asdict(MetricKey("loss"))
    rows = select(ids.c[0], *map(literal, key.values()), steps.c.step, literal(now_ms()), value)
    rows = rows.join_from(ids, steps, true())
    columns = ["job_id", *key, "step", "at", "value"]
    with writing() as session:
        session.execute(insert(MetricPoint).from_select(columns, rows))


def _further_down(rows: list[Any], blocks: int, times: int) -> Iterator[Any]:
    for again in range(1, times):
        for row in rows:
            block = row.block + again * blocks
            name = row.tensor.replace(f".{row.block}.", f".{block}.")
            yield _copy(row, tensor=name, block=block)


def _copy(row: Rows, **changed: Any) -> Rows:
    """The same row, not yet stored, with some values changed."""
    return type(row)(**{name: getattr(row, name) for name in _columns(type(row))} | changed)


def _columns(table: type[Table]) -> list[str]:
    return [column.key for column in inspect(table).column_attrs]
