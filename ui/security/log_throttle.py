"""Messages that an attacker can cause at will must not fill the disk."""

import logging
import time

MINUTE = 60.0
PER_MINUTE = {  # logger -> messages a minute from the same line of code
    "asyncio": 5,  # "socket.accept() out of system resource", with a trace
    "uvicorn.error": 5,  # "Invalid HTTP request received."
    "slimscope.database": 5,
    "slimscope.refused": 300,
}


class RepeatFilter(logging.Filter):
    """Passes at most `most` messages a minute from one line of code. The first one of the next
    minute says how many were left out."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # -> start of the minute, number

    def filter(self, record: logging.LogRecord) -> bool:
        now, line = time.monotonic(), (record.pathname, record.lineno)
        start, number = self._seen.get(line, (now, 0))
        if now - start >= MINUTE:
            if number > self.most:
                record.msg = f"{record.getMessage()} ({number - self.most} more were not logged)"
                record.args = ()
            start, number = now, 0
        self._seen[line] = start, number + 1
        return number < self.most


def throttle_logs() -> None:
    """Limit the loggers that requests can make write."""
    for name, most in PER_MINUTE.items():
        logging.getLogger(name).addFilter(RepeatFilter(most))
