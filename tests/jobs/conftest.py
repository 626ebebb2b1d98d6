"""The same queue as the queue's own tests use, but for real jobs."""

from tests.queue.conftest import loop, queue, wait

__all__ = ["loop", "queue", "wait"]
