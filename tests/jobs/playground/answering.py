"""A supervisor's loop with the playground beside it, in the process of the tests."""

from __future__ import annotations

from backend.queue import scheduling
from backend.queue.engines.base import Engine
from backend.queue.supervisor import SupervisorLoop
from backend.store.states import Lane
from jobs.playground.server import PlaygroundServer


class AnsweringLoop(SupervisorLoop):
    """Each turn is one of the playground's, too: answers start no process."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.playground = PlaygroundServer()

    def turn(self) -> bool:
        if not self.playground.idle_s or scheduling.waits_for(Lane.PLAYGROUND, limit=1):
            self.playground.turn()
        return super().turn()
