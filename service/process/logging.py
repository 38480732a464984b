"""JSON logging on standard error: one line per record, with the id of the request it belongs to."""

import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from typing import Any

from pydantic_core import to_json

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled in this context."""

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_from_header(header: str | None) -> str:
    """Return the client's request id if it is plain enough not to forge log lines, or else a new one."""
    return header if header and _VALID_REQUEST_ID.fullmatch(header) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time (UTC), level, logger, message, request_id, and `fields` from its `extra`."""

    def __init__(self) -> None:
        super().__init__()
        self._cached_second, self._cached_text = 0, ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a line break."""
        line: dict[str, Any] = {
            "time": f"{self._format_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_json(line, fallback=str).decode()

    def _format_second(self, second: int) -> str:
        if second != self._cached_second:
            self._cached_second = second
            self._cached_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._cached_text


def set_up_logging(level: str) -> None:
    """Format all log records of this process as JSON; disable uvicorn's access log, since the service has its own."""
    # Skip collecting what the lines do not contain, as the logging documentation recommends.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
