"""The server under load: its throughput against the library's, its latencies, and whether every answer is right."""

from __future__ import annotations

import base64
import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from unimoer.benchmarks.pairs import Ratio
from unimoer.data.embedded import load_embedded
from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.library.model import Kind

DOMAINS = ("attack", "cwe", "hpo", "code")
WITHIN = 0.02
"""How far a vector's cosine from 1, or a relevance, may be from the library's in bfloat16, in another batch."""
TEXTS, LISTED = 8, 16
"""Documents of an embedding request, and of a reranking request."""


@dataclass(frozen=True)
class Ask:
    """One request, and what the library answers to it."""

    path: str
    body: bytes
    texts: int
    expected: np.ndarray

    def right(self, answer: dict[str, Any]) -> bool:
        if self.path == "/v1/embeddings":
            packed = [base64.b64decode(one["embedding"]) for one in answer["data"]]
            found = np.stack([np.frombuffer(one, "<f4") for one in packed])
            return found.shape == self.expected.shape and bool(((found * self.expected).sum(1) > 1 - WITHIN).all())
        found = np.full(len(self.expected), np.nan)
        for one in answer["results"]:
            found[one["index"]] = one["relevance_score"]
        return bool((np.abs(found - self.expected) < WITHIN).all())


@dataclass
class Load:
    """What many clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    """Requests whose connection broke after they were sent, without an answer."""
    texts: int = 0
    elapsed: float = 0.0


class Server:
    """`unimoer serve` in a process of its own, on a free port."""

    def __init__(self, model: str, device: str) -> None:
        command = [sys.executable, "-m", "unimoer", "serve", model, "--port", "0", "--device", device]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        if " at http://" not in first:
            raise UserError(f"bench serve: the server did not start: {first.strip()}")
        self.port = int(first.rsplit(":", 1)[1])
        # Its log must go somewhere: a full pipe would stop it.
        threading.Thread(target=self._drain, daemon=True).start()
        self._wait()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for _ in self.process.stderr:
            pass

    def _wait(self) -> None:
        for _ in range(600):
            with suppress(OSError):
                connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        raise UserError("bench serve: the server is not ready after a minute")

    @property
    def memory(self) -> dict[str, int]:
        """Peak resident bytes, and the present share of all processes' memory that is its own (PSS)."""
        found = {}
        for name, field_name, path in (("peak", "VmHWM:", "status"), ("share", "Pss:", "smaps_rollup")):
            lines = Path(f"/proc/{self.process.pid}/{path}").read_text().splitlines()
            found[name] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def requests_of(model: UniMoER, kind: str, count: int) -> list[Ask]:
    """`query`: one text each; `embed`: documents of one domain; `rerank`: a query with documents."""
    sets = [load_embedded(domain) for domain in DOMAINS]
    asks = []
    for number in range(count):
        dataset = sets[number % len(sets)]
        queries, corpus = list(dataset.queries.values()), list(dataset.corpus.values())
        query = queries[number % len(queries)]
        size = {"query": 1, "embed": TEXTS, "rerank": LISTED}[kind]
        listed = [corpus[(number * size + place) % len(corpus)].content for place in range(size)]
        if kind == "rerank":
            head = model.model.head
            expected = head.relevance(model.score([(query, text) for text in listed]))
            body: dict[str, Any] = {"query": query, "documents": listed}
        else:
            as_: Kind = "query" if kind == "query" else "document"
            given = [query] if kind == "query" else listed
            expected = model.encode(given, as_)
            # As the openai package asks for them.
            body = {"input": given, "input_type": as_, "encoding_format": "base64"}
        path = "/v1/rerank" if kind == "rerank" else "/v1/embeddings"
        asks.append(Ask(path, json.dumps(body).encode(), size, expected))
    return asks


def drive(port: int, asks: Sequence[Ask], clients: int, until: Callable[[int], bool]) -> Load:
    """Each client sends its next request when its last was answered, as long as `until` of their number is false."""
    load, lock, taken = Load(), threading.Lock(), iter(range(1 << 62))

    def run() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(taken)
            if until(number):
                return
            ask = asks[number % len(asks)]
            started = time.perf_counter()
            try:
                connection.request("POST", ask.path, ask.body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                with lock:
                    load.lost += 1
                return
            took = time.perf_counter() - started
            right = answer.status != 200 or ask.right(json.loads(content))
            with lock:
                load.seconds.append(took)
                load.statuses[answer.status] += 1
                load.wrong += not right
                load.texts += ask.texts

    threads = [threading.Thread(target=run) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.perf_counter() - started
    return load


def _library(model: UniMoER, asks: Sequence[Ask], clients: int) -> float:
    """Seconds for the same work by the library, as many requests at a time as there are clients."""
    bodies = [json.loads(ask.body) for ask in asks]
    started = time.perf_counter()
    for start in range(0, len(bodies), clients):
        together = bodies[start : start + clients]
        if asks[0].path == "/v1/rerank":
            model.score([(body["query"], text) for body in together for text in body["documents"]])
        else:
            model.encode([text for body in together for text in body["input"]], bodies[0]["input_type"])
    return time.perf_counter() - started


def bench_serve(
    console: Console, *, model: str, device: str, clients: int, requests: int, pairs: int, minutes: float
) -> dict[str, Any]:
    """Texts per second over HTTP against the library in this process, by turns; then, for some minutes, all at once."""
    # Clients, server and library share the cores: the server has what the clients leave.
    loaded = UniMoER.load(model, device=device)
    server = Server(model, device)
    table = Table(title=f"{model}, {clients} clients on loopback, {os.cpu_count()} cores", title_justify="left")
    for column in ("request", "texts/s", "of the library's", "p50", "p99", "p99 / p50"):
        table.add_column(column, justify="left" if column == "request" else "right")
    names = {"query": "one query", "embed": f"{TEXTS} documents", "rerank": f"a query, {LISTED} documents"}
    line: dict[str, Any] = {"bench": "serve", "model": model, "clients": clients, "threads": torch.get_num_threads()}
    mixed: list[Ask] = []
    for kind, name in names.items():
        count = requests if kind == "query" else max(clients, requests // 3)
        asks = requests_of(loaded, kind, count)
        mixed += asks
        drive(server.port, asks, clients, partial(operator.le, clients))
        ratios, loads = [], []
        for _ in range(pairs):
            seconds = _library(loaded, asks, clients)
            loads.append(drive(server.port, asks, clients, partial(operator.le, count)))
            ratios.append(seconds / loads[-1].elapsed)
        ratio = Ratio(tuple(ratios))
        every = [second for load in loads for second in load.seconds]
        p50, p99 = np.percentile(every, [50, 99])
        rate = sum(load.texts for load in loads) / sum(load.elapsed for load in loads)
        found = ratio.to_json()
        spread = f"{found['ratio']:.2f}  ({found['low']:.2f} - {found['high']:.2f})"
        table.add_row(
            name, f"{rate:,.0f}", spread, f"{1000 * p50:,.0f} ms", f"{1000 * p99:,.0f} ms", f"{p99 / p50:.1f}"
        )
        line[kind] = found | {"p50_ms": round(1000 * p50, 1), "p99_ms": round(1000 * p99, 1)} | _troubles(loads)
    console.print(table)
    if minutes:
        end = time.perf_counter() + 60 * minutes
        order = np.random.default_rng(0).permutation(len(mixed))
        soak = drive(server.port, [mixed[place] for place in order], clients, lambda _: time.perf_counter() > end)
        line["mixed"] = {"minutes": minutes, "requests": len(soak.seconds)} | _troubles([soak])
        console.print(
            f"{minutes:g} minutes of all three: {len(soak.seconds):,} answers, {line['mixed']}", highlight=False
        )
    line["exit"] = server.stop()
    print(json.dumps(line))  # noqa: T201
    return line


def _troubles(loads: Sequence[Load]) -> dict[str, Any]:
    statuses = sum((load.statuses for load in loads), Counter[int]())
    return {
        "statuses": {str(status): count for status, count in statuses.items()},
        "wrong": sum(load.wrong for load in loads),
        "lost": sum(load.lost for load in loads),
    }
