"""The part of the processor that answers may use: less while a job runs, less for guests."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from backend.settings import available_threads, settings

HOST_NICE, GUEST_NICE = 5, 15  # of 19; a job has 0, so that it gets most of a core both want

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
        try:
            future, function = self._calls.get(timeout=seconds)
        except queue.Empty:
            return
        try:
            future.set_result(function())
        except Exception as error:  # it belongs to whoever asked
            future.set_exception(error)


class HostPriority:
    """Calls with the priority of a host, whoever asks. A thread has the priority of the one that
    starts it and cannot raise it, so one that nobody lowers starts them; make this in the main
    thread."""

    def __init__(self) -> None:
        self._starter = ThreadPoolExecutor(1, "starter", lower_priority, (HOST_NICE,))
        self._starter.submit(int).result()

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, or its error, from a thread of its own."""
        future: Future[T] = Future()
        threads = torch.get_num_threads()

        def work() -> None:
            try:
                torch.set_num_threads(threads)
                future.set_result(function())
            except BaseException as error:  # it belongs to whoever asked
                future.set_exception(error)

        self._starter.submit(threading.Thread(target=work, daemon=True).start)
        return future.result()


class CpuShare:
    """Division of the threads among the texts written at a time; `jobs` beside them take half."""

    def __init__(self) -> None:
        self.jobs = False
        self._writing = 0
        self._lock = threading.Lock()

    def threads(self, most: int = 0) -> int:
        """Threads for one text at this moment; `most`: what its config allows, 0 for any number."""
        every = settings().threads or available_threads()
        part = (every // 2 if self.jobs else every) // max(1, self._writing)
        return max(1, min(part, most or part))

    @contextmanager
    def one_more(self, guest: bool) -> Iterator[None]:
        """While the body writes a text, in a thread of its own with the priority it should have."""
        lower_priority(GUEST_NICE if guest else HOST_NICE)
        with self._lock:
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing -= 1

    def apply(self, most: int = 0) -> None:
        """Let this thread compute with the number of threads it may use now."""
        threads = self.threads(most)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # in this thread and in new ones


def lower_priority(nice: int) -> None:
    """Lower the priority of this thread and of those it starts. Linux alone has one for each."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
