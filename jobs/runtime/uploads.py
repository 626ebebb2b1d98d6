"""Background uploads of a run's files to the artifact store. A thread uploads, so that the job
never waits for a slow or full store. Only a finished run waits until its model is stored."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backend.checkpoints import MANIFEST
from backend.queue.artifacts import ArtifactStore, key_of

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0
LOG_INTERVAL_S = 5.0  # between uploads of the log
SLOW_S = 30.0  # a run that has waited longer says so in its log


class Uploads:
    """Queue of a run's files to upload.

    Args:
        store: the artifact store; None disables uploads.
        log_file: uploaded whenever it has grown.
        beside: a file that checkpoints rely on, uploaded before them.
        log: called when uploads fail and when they succeed again.
    """

    def __init__(
        self, store: ArtifactStore | None, log_file: Path, beside: Path, log: Callable[[str], None]
    ) -> None:
        self._store, self._log_file, self._beside, self._log = store, log_file, beside, log
        self._waiting: dict[Path, int] = {}  # path -> number of `add` calls, in upload order
        self._changed = threading.Condition()
        self._closed = False
        self._failures = 0  # consecutive
        self._uploaded_log_bytes = -1
        self._thread = threading.Thread(target=self._upload_forever, name="uploads", daemon=True)

    def start(self) -> None:
        if self._store is not None:
            self._thread.start()

    def add(self, path: Path) -> None:
        """Queue a file, or a folder with a manifest."""
        if self._store is None:
            return
        with self._changed:
            self._waiting[path] = self._waiting.get(path, 0) + 1
            self._changed.notify_all()

    def add_saved(self, folder: Path, but: Path) -> None:
        """Queue the saved results in a run's folder, without its checkpoints (`but`) and logs."""
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            is_excluded = path == but or path in self._log_file.parents or path.name.startswith(".")
            if not is_excluded and (path.is_file() or (path / MANIFEST).is_file()):
                self.add(path)

    def wait(self, is_given_up: Callable[[], bool]) -> bool:
        """Wait until everything is stored; return False if `is_given_up` first."""
        slow_at = time.monotonic() + SLOW_S
        while self._store is not None:
            with self._changed:
                if self._changed.wait_for(lambda: not self._waiting, 1.0):
                    return True
            if time.monotonic() > slow_at:  # a hanging connection takes a minute to fail
                slow_at = math.inf
                self._log(
                    "The run is waiting for the artifact store, which is slow or unreachable."
                )
            if is_given_up():
                return False
        return True

    def close(self, within_s: float) -> bool:
        """Upload the remaining files and the end of the log within the time. Returns True if there
        is a store and it has everything."""
        if self._store is None or not self._thread.is_alive():
            return False
        deadline = time.monotonic() + within_s
        is_stored = self.wait(lambda: time.monotonic() > deadline)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return is_stored and not self._thread.is_alive() and not self._failures

    def _upload_forever(self) -> None:
        while True:
            with self._changed:
                pause = (
                    min(MAX_RETRY_S, MIN_RETRY_S * 2.0 ** (self._failures - 1))
                    if self._failures
                    else 0.0
                )
                self._changed.wait_for(lambda: self._closed, pause)
                if not self._failures:
                    self._changed.wait_for(lambda: self._closed or self._waiting, LOG_INTERVAL_S)
                closed, (path, times) = self._closed, next(iter(self._waiting.items()), (None, 0))
            try:
                if path is not None and self._upload(path):
                    self._forget(path, times)
                size = self._log_file.stat().st_size if self._log_file.exists() else -1
                if self._store is not None and size > self._uploaded_log_bytes:
                    self._store.put_file(self._log_file, key_of(self._log_file))
                    self._uploaded_log_bytes = size
            except Exception as error:  # file systems raise different errors
                self._failures += 1
                if self._failures == 1:
                    self._log(f"Uploads to the artifact store fail. Files are kept here: {error}")
            else:
                if self._failures:
                    self._failures = 0
                    self._log("Uploads to the artifact store work again.")
            if closed:
                return

    def _upload(self, path: Path) -> bool:
        """Upload a path; return False if it has to be uploaded again."""
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
            if path.exists():  # a file is missing: the folder was replaced meanwhile
                raise
            return True

    def _forget(self, path: Path, times: int) -> None:
        """Remove an uploaded path from the queue, unless it was added again meanwhile."""
        with self._changed:
            if self._waiting.get(path) == times:
                del self._waiting[path]
            self._changed.notify_all()
