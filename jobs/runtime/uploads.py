"""A run's files on their way into the store of artifacts. A thread carries them there, so that the
work never waits for a store that is slow or full. Only a run that has succeeded waits until its
model is there."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backend.checkpoints import MANIFEST
from backend.queue.artifacts import ArtifactStore, key_of

FIRST_S, LONGEST_S = 1.0, 60.0  # between tries
LOG_S, SLOW_S = 5.0, 30.0  # between looks at the log; after which a run says that it waits


class Uploads:
    """What of a run is still to be stored.

    Args:
        store: where to; None keeps nothing and waits for nothing.
        log_file: stored whenever it has grown; beside: a file that checkpoints rely on, stored
            before them.
        log: told when the store takes nothing, and when it does again.
    """

    def __init__(
        self, store: ArtifactStore | None, log_file: Path, beside: Path, log: Callable[[str], None]
    ) -> None:
        self._store, self._log_file, self._beside, self._log = store, log_file, beside, log
        self._waiting: dict[Path, int] = {}  # in this order, with how often it was added
        self._turn = threading.Condition()
        self._closed = False
        self._failed = 0  # times in a row
        self._logged = -1  # bytes of the log that are stored
        self._thread = threading.Thread(target=self._carry, name="uploads", daemon=True)

    def start(self) -> None:
        if self._store is not None:
            self._thread.start()

    def add(self, path: Path) -> None:
        """Store a folder with a manifest, or a file, some time."""
        if self._store is None:
            return
        with self._turn:
            self._waiting[path] = self._waiting.get(path, 0) + 1
            self._turn.notify_all()

    def add_saved(self, folder: Path, but: Path) -> None:
        """Store what a run has saved in its folder, except for its checkpoints and logs."""
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            inside = path == but or path in self._log_file.parents or path.name.startswith(".")
            if not inside and (path.is_file() or (path / MANIFEST).is_file()):
                self.add(path)

    def wait(self, is_given_up: Callable[[], bool]) -> bool:
        """Whether everything has been stored; it waits until then, or until it is given up."""
        slow_at = time.monotonic() + SLOW_S
        while self._store is not None:
            with self._turn:
                if self._turn.wait_for(lambda: not self._waiting, 1.0):
                    return True
            if time.monotonic() > slow_at:  # a connection that hangs is no error for a minute
                slow_at = math.inf
                self._log("The run waits for the artifact store, which is slow or does not answer.")
            if is_given_up():
                return False
        return True

    def close(self, within_s: float) -> bool:
        """Store what is left, and the end of the log, if the store takes it in time; return whether
        there is a store, and it has everything."""
        if self._store is None or not self._thread.is_alive():
            return False
        deadline = time.monotonic() + within_s
        is_stored = self.wait(lambda: time.monotonic() > deadline)
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return is_stored and not self._thread.is_alive() and not self._failed

    def _carry(self) -> None:
        while True:
            with self._turn:
                pause = min(LONGEST_S, FIRST_S * 2.0 ** (self._failed - 1)) if self._failed else 0.0
                self._turn.wait_for(lambda: self._closed, pause)
                if not self._failed:
                    self._turn.wait_for(lambda: self._closed or self._waiting, LOG_S)
                closed, (path, times) = self._closed, next(iter(self._waiting.items()), (None, 0))
            try:
                if path is not None and self._is_stored(path):
                    self._forget(path, times)
                size = self._log_file.stat().st_size if self._log_file.exists() else -1
                if self._store is not None and size > self._logged:
                    self._store.put_file(self._log_file, key_of(self._log_file))
                    self._logged = size
            except Exception as error:  # each file system has errors of its own
                self._failed += 1
                if self._failed == 1:
                    kept = "The artifact store takes nothing, files are kept here meanwhile"
                    self._log(f"{kept}: {error}")
            else:
                if self._failed:
                    self._failed = 0
                    self._log("The artifact store takes files again.")
            if closed:
                return

    def _is_stored(self, path: Path) -> bool:
        """Store a path; False if it has to be stored again."""
        if self._store is None:
            return True
        if self._beside.exists():
            self._store.put_file(self._beside, key_of(self._beside))
        if path.is_file():
            self._store.put_file(path, key_of(path))
            return True
        try:
            return self._store.put_folder(path, key_of(path))
        except FileNotFoundError:
            if path.exists():  # a part of it is gone: it was replaced meanwhile
                raise
            return True

    def _forget(self, path: Path, times: int) -> None:
        """Drop a path that was stored, unless it was added again meanwhile."""
        with self._turn:
            if self._waiting.get(path) == times:
                del self._waiting[path]
            self._turn.notify_all()
