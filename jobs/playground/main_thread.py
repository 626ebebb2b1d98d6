"""Calls that have to be made in the main thread of a process, asked for by its other threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class MainThread:
    """The main thread carries the calls out while it waits for other things to do."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, or its error, from the main thread."""
        if threading.current_thread() is threading.main_thread():
            return function()
        future: Future[T] = Future()
        self._calls.put((future, function))
        return future.result()

    def serve(self, seconds: float) -> None:
        """Wait that long for a call, and carry it out."""
        try:
            future, function = self._calls.get(timeout=seconds)
        except queue.Empty:
            return
        try:
            future.set_result(function())
        except Exception as error:  # it belongs to whoever asked
            future.set_exception(error)
