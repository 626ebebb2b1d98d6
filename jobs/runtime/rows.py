"""Database rows of what a run reports, and how they are written."""

from __future__ import annotations

import zlib

import numpy as np
from sqlalchemy import inspect
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from backend.statistics.tensors import TensorProfile, TensorSnapshot
from backend.store.tables import ProfileRow, Table, TensorRow


def tensor_row(job_id: int, snapshot: TensorSnapshot) -> TensorRow:
    """The database row of a snapshot."""
    return TensorRow(
        job_id=job_id, tensor=snapshot.tensor, stage=snapshot.stage, step=snapshot.step,
        block=snapshot.block, module=snapshot.module, n=snapshot.n, zeros=snapshot.zeros,
        below=snapshot.below, above=snapshot.above, lo=snapshot.lo, hi=snapshot.hi,
        counts=zlib.compress(snapshot.counts.astype(np.dtype("<u4")).tobytes()),
        stats=snapshot.stats, quantiles=list(snapshot.quantiles),
    )  # fmt: skip


def profile_row(job_id: int, profile: TensorProfile) -> ProfileRow:
    """The database row of a profile."""
    return ProfileRow(
        job_id=job_id, tensor=profile.tensor, stage=profile.stage, step=profile.step,
        name=profile.name, block=profile.block, module=profile.module,
        shape=list(profile.values.shape),
        values=zlib.compress(profile.values.astype(np.dtype("<f4")).tobytes()),
    )  # fmt: skip


def upsert(session: Session, row: Table) -> None:
    """Inserts a row or replaces the one with the same key: a resumed attempt repeats itself."""
    mapper = inspect(type(row))
    values = {column.key: getattr(row, column.key) for column in mapper.columns}
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgres_insert
    keys = [str(column.key) for column in mapper.primary_key]
    statement = insert(type(row)).values(values)
    changed = {key: value for key, value in values.items() if key not in keys}
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))
