"""The engine of the settings. Modules of cluster engines are imported only if they are needed."""

from importlib import import_module

from backend.queue.engines.base import Engine
from backend.queue.engines.local import LocalEngine
from backend.settings import Settings

CLUSTERS = {"ray": "backend.queue.engines.ray", "slurm": "backend.queue.engines.slurm"}


def engine_of(settings: Settings) -> Engine:
    """Create the engine that the settings name."""
    if settings.engine == LocalEngine.name:
        return LocalEngine(settings.slots)
    engine: Engine = import_module(CLUSTERS[settings.engine]).engine_from_settings(settings)
    return engine
