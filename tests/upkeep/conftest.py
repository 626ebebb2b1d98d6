"""A data folder with tables and the counting kind."""

from tests.queue.conftest import queue

__all__ = ["queue"]
