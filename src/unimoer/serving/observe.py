"""What an operator sees: metrics in Prometheus' form, and one JSON line a request, without anybody's text."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unimoer.types import Task

log = logging.getLogger("unimoer.serving")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; of a registry of its own, so that two servers in one process do not add up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("unimoer_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "unimoer_request_seconds", "From a request's first byte to its answer.", ["route"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.rows = Histogram(
            "unimoer_batch_rows", "Texts or pairs of a forward pass.", ["task"], buckets=ROWS, registry=self.registry
        )
        self.tokens = Counter("unimoer_tokens", "Tokens computed.", ["task"], registry=self.registry)
        self.busy = Counter("unimoer_busy_seconds", "Time spent computing.", ["task"], registry=self.registry)
        self.waiting = Gauge("unimoer_queue_tokens", "Tokens accepted and not answered.", registry=self.registry)

    def batch(self, task: Task, rows: int, tokens: int, seconds: float) -> None:
        """Told of every forward pass."""
        self.rows.labels(task.value).observe(rows)
        self.tokens.labels(task.value).inc(tokens)
        self.busy.labels(task.value).inc(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Told of every answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, message, and what was given as `extra`."""

    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        found |= {key: value for key, value in vars(record).items() if key not in self._USUAL}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def log_as_json() -> None:
    """Send this package's and uvicorn's records to stderr; its access log, which has whole addresses, stays silent."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("unimoer.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True
