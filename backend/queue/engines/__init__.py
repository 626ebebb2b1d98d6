"""The engine that is set. That of a cluster is imported only then: one machine needs none of it."""

from importlib import import_module

from backend.queue.engines.base import Engine
from backend.queue.engines.local import LocalEngine
from backend.settings import Settings

CLUSTERS = {"ray": "backend.queue.engines.ray", "slurm": "backend.queue.engines.slurm"}


def engine_of(here: Settings) -> Engine:
    if here.engine == LocalEngine.name:
        return LocalEngine(here.slots)
    engine: Engine = import_module(CLUSTERS[here.engine]).made(here)
    return engine
