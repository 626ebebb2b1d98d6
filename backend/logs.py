"""Log output: one JSON object per line for log collectors, plain lines on a terminal. Messages that
an attacker can trigger at will are throttled so that they cannot fill the disk."""

import json
import logging
import sys
import time
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time (UTC), level, logger, message and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def start_logging() -> bool:
    """Log to standard error; return True if the output is JSON."""
    handler, is_terminal = logging.StreamHandler(), sys.stderr.isatty()
    plain = logging.Formatter("%(asctime)s %(name)s %(message)s")
    handler.setFormatter(plain if is_terminal else JsonFormatter())
    logging.basicConfig(handlers=[handler])
    return not is_terminal


MINUTE_S = 60.0
MESSAGES_PER_MINUTE = {  # logger -> limit for each line of code
    "asyncio": 5,  # "socket.accept() out of system resource", with a trace
    "uvicorn.error": 5,  # "Invalid HTTP request received."
    "slimscope.database": 5,
    "slimscope.refused": 300,
}


class RepeatFilter(logging.Filter):
    """Passes at most `limit` messages a minute from one line of code. The first message of the next
    minute says how many were dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._seen: dict[
            tuple[str, int], tuple[float, int]
        ] = {}  # line -> (start of the minute, count)

    def filter(self, record: logging.LogRecord) -> bool:
        now, line = time.monotonic(), (record.pathname, record.lineno)
        start, count = self._seen.get(line, (now, 0))
        if now - start >= MINUTE_S:
            if count > self.limit:
                record.msg = f"{record.getMessage()} ({count - self.limit} more were not logged)"
                record.args = ()
            start, count = now, 0
        self._seen[line] = start, count + 1
        return count < self.limit


def throttle_logs() -> None:
    """Throttle the loggers that a request can trigger."""
    for name, limit in MESSAGES_PER_MINUTE.items():
        logging.getLogger(name).addFilter(RepeatFilter(limit))
