"""A data folder with runs whose statistics were measured on the toy model, pruned by magnitude."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import gradio as gr
import pytest
from safetensors.torch import load_file
from sqlalchemy import select, update
from torch import Tensor

import backend.models.sources.toy
from backend.metric_key import MetricKey
from backend.settings import Settings, settings
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.store.migrate import upgrade
from backend.store.session import engine_for, now_ms, writing
from backend.store.tables import Event, Job, MetricPoint, Result, Supervisor, Table
from jobs.runtime.row_buffer import Row, profile_row, tensor_row
from tests.gates import nothing_asked
from tests.ui.visits import blocks, open_to_guests, shared, visit, web
from ui import app

__all__ = ["blocks", "open_to_guests", "shared", "visit", "web"]  # fixtures
HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=document.body.dataset.x=2>{{value}}"
PERPLEXITIES = {
    "dense": 4.9,
    "first": 8.2,
    "control": 6.1,
    "redense": 5.6,
    "second": 7.0,
    "sds": 5.9,
}
TOY = Path(backend.models.sources.toy.__file__).parent / "model.safetensors"
FILLED: dict[Callable[[], object], Path] = {}  # what stores runs -> a folder with them
MEASURED: dict[tuple[str, bytes], list[TensorMeasurement]] = {}  # name, weights -> its stages


def keep_2_of_4(weight: Tensor) -> Tensor:
    """`weight` [out, in] with the two smallest of every four inputs set to zero."""
    groups = weight.unflatten(-1, (-1, 4))
    smallest = groups.abs().argsort(dim=-1)[..., :2]
    return groups.scatter(-1, smallest, 0.0).flatten(-2)


def stages_of(dense: Tensor) -> dict[str, Tensor]:
    """What magnitude pruning and a crude re-dense step make of one tensor."""
    first = keep_2_of_4(dense)
    redense = first + 0.4 * (dense - first)
    second = keep_2_of_4(redense)
    return {
        "dense": dense,
        "first": first,
        "control": first * 1.02,
        "redense": redense,
        "second": second,
        "sds": second * 1.05,
    }


def mapped(row: Row) -> Table:
    """The row as a mapped object."""
    table, values = row
    return table(**values)


def tensor_rows(job_id: int, tensors: dict[str, Tensor], stages: int = 6) -> Iterator[Table]:
    """Snapshots and profiles of every linear layer of a Llama at its first `stages` stages."""
    for name, weight in sorted(tensors.items()):
        if ".layers." not in name or "norm" in name:
            continue
        key = name, weight.float().numpy().tobytes()
        if key not in MEASURED:
            MEASURED[key] = list(measured_stages(name, weight.float()))
        for taken in MEASURED[key][:stages]:
            yield mapped(tensor_row(job_id, taken.snapshot))
            yield from (mapped(profile_row(job_id, profile)) for profile in taken.profiles)


def measured_stages(name: str, dense: Tensor) -> Iterator[TensorMeasurement]:
    """What is measured of one tensor at each of its stages."""
    block, module = name.split(".layers.")[1].removesuffix(".weight").split(".", 1)
    reference, made = ReferenceTensor(dense), stages_of(dense)
    for stage, now in made.items():
        more = {
            "relative_error": ((now - dense).norm() / dense.norm()).item(),
            "mask_overlap": mask_overlap(now, made["first"]),
        }
        energy = dense.new_full((dense.shape[1],), 1.0 + int(block))
        energy[7] *= 400  # an input that stands out
        yield reference.measure(
            now,
            tensor=name,
            block=int(block),
            module=module,
            stage=stage,
            more=more,
            energy=energy if stage == "first" else None,
        )


def mask_overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of the weights that are not zero."""
    return ((a != 0) & (b != 0)).sum().item() / ((a != 0) | (b != 0)).sum().item()


def job_row(job_id: int, state: str, **values: object) -> Job:
    """A job queued a little before now."""
    now = now_ms() - 60_000 * (20 - job_id)
    row = {
        "id": job_id,
        "kind": "sds",
        "name": "",
        "owner": "local",
        "state": state,
        "config": {"model": "toy", "pattern": "2:4", "base": "magnitude"},
        "config_hash": "0" * 64,
        "created_at": now,
        "queued_at": now,
        "started_at": now + 1000,
    }
    return Job(**(row | values))


def result_rows(job_id: int) -> Iterator[Result]:
    """Perplexity of every stage."""
    for stage, value in PERPLEXITIES.items():
        yield Result(
            job_id=job_id,
            stage=stage,
            family="perplexity",
            value=value,
            stderr=value / 50,
            n=4080,
            details={"corpus": "toystories", "context": 256},
        )


def seed(tensors: dict[str, Tensor]) -> None:
    """Fills the current data folder: sds-0001 has ended, sds-0002 runs, sds-0003 waits, sds-0004
    failed, sds-0005 ended without weight statistics."""
    now = now_ms()
    error = {"what": "The model ran out of memory.", "why": HOSTILE, "do": "Use fewer segments."}
    rows: list[Table] = [
        job_row(
            1,
            "succeeded",
            name=HOSTILE,
            finished_at=now - 500_000,
            done=1,
            total=1,
            kept_stage="sds",
        ),
        job_row(2, "running", name="half way", done=0.61, total=1.0, eta_s=270.0, stage="Block 2"),
        job_row(3, "queued", name="next", started_at=None),
        job_row(4, "failed", finished_at=now, error=error),
        job_row(5, "cancelled", name="no statistics", finished_at=now),
    ]
    rows += [Event(job_id=i, at=now, type="queued", actor="local") for i in range(1, 6)]
    rows += [*tensor_rows(1, tensors), *tensor_rows(2, tensors, stages=2), *result_rows(1)]
    rows += [
        MetricPoint(
            job_id=2,
            **asdict(MetricKey("error", stage, axis="block")),
            step=i,
            at=now,
            value=0.03 * k + i / 99,
        )
        for k, stage in enumerate(("first", "redense", "sds"), 1)
        for i in range(3)
    ]
    rows.append(Supervisor(host="here", beat_at=now))
    with writing() as session:
        session.add_all(rows[:5])
        session.flush()
        session.add_all(rows[5:])


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Meanwhile the data folder is this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMSCOPE_DATA_DIR", str(folder))
        settings.cache_clear()
        upgrade()
        yield
        engine_for(settings().url).dispose()  # moves the write-ahead log into the database
    settings.cache_clear()


Fill = Callable[[Callable[[], object]], None]


@pytest.fixture
def filled(current: Settings, tmp_path_factory: pytest.TempPathFactory) -> Fill:
    """Gives the data folder of a test what a function stores: once, and then a copy of that."""

    def fill(store: Callable[[], object]) -> None:
        if store not in FILLED:
            FILLED[store] = tmp_path_factory.mktemp("filled")
            with filling(FILLED[store]):
                store()
        shutil.copytree(FILLED[store], current.root)

    return fill


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> gr.Blocks:
    """The dashboard, put together beside tables without a row as `app.main` does it. That takes
    seconds, so the tests of a process share it and leave it as it was."""
    with filling(tmp_path_factory.mktemp("built")):
        return app.build()


@pytest.fixture(scope="session")
def served(built: gr.Blocks) -> Iterator[gr.Blocks]:
    """The same as `app.serve` shows it, on a free port."""
    options = app.launch_options() | {"server_name": "127.0.0.1", "prevent_thread_lock": True}
    built.launch(**options)
    yield built
    built.close()


@pytest.fixture(autouse=True)
def _nothing_asked_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test spends what another may ask for in a minute."""
    nothing_asked(monkeypatch, "changes", "previews")


@pytest.fixture(scope="session")
def seed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder filled by `seed` with the toy model's tensors, which takes a while; only to be
    copied."""
    folder = tmp_path_factory.mktemp("seed")
    with filling(folder):
        seed(load_file(TOY))
    return folder


def move_to_now() -> None:
    """Moves all times in the database, so that its supervisor's last beat is now."""
    with writing() as session:
        late_ms = now_ms() - session.scalars(select(Supervisor.beat_at)).one()
        for table in Table.__subclasses__():
            columns = table.__table__.columns
            times = {c.name: c + late_ms for c in columns if c.name.rpartition("_")[2] == "at"}
            if times:
                session.execute(update(table).values(times))


@pytest.fixture
def seeded(current: Settings, seed_folder: Path) -> Settings:
    """The settings of a data folder filled by `seed` with the toy model's tensors."""
    shutil.copytree(seed_folder, current.root)
    move_to_now()
    return current
