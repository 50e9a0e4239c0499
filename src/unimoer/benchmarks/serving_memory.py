"""Memory of one serving process that does both stages against two processes with a model each."""

from __future__ import annotations

import json
import operator
import statistics
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from unimoer.benchmarks.serve import Server, drive, requests_of
from unimoer.library import UniMoER


def bench_serving_memory(console: Console, *, model: str, pairs: int) -> dict[str, Any]:
    """Both systems in turn do the same work: embed queries and documents, and rerank; what each held at its peak.

    Two peaks add up: resident memory counts pages of libraries that both processes have mapped twice. So the present
    share (PSS), which counts them once, stands beside it. Linux only.
    """
    loaded = UniMoER.load(model, device="cpu")
    work = [requests_of(loaded, kind, count) for kind, count in (("query", 16), ("embed", 8), ("rerank", 4))]
    embeds, reranks = [*work[0], *work[1]], work[2]

    def measure(*systems: list[list[Any]]) -> dict[str, int]:
        servers = [Server(model, "cpu") for _ in systems]
        for server, parts in zip(servers, systems, strict=True):
            for asks in parts:
                drive(server.port, asks, 4, partial(operator.le, len(asks)))
        found = [server.memory for server in servers]
        for server in servers:
            server.stop()
        return {name: sum(one[name] for one in found) for name in ("peak", "share")}

    runs = [(measure([embeds, reranks]), measure([embeds], [reranks])) for _ in range(pairs)]
    table = Table(title=f"{model}: one server for both stages against two servers", title_justify="left")
    for column in ("", "one process", "two processes", "share"):
        table.add_column(column, justify="right" if column else "left")
    line: dict[str, Any] = {"bench": "memory --serving", "model": model, "pairs": pairs}
    for name, words in (("peak", "peak resident"), ("share", "share of memory afterwards (PSS)")):
        ratios = sorted(one[name] / two[name] for one, two in runs)
        middle = statistics.median(ratios)
        sizes = [f"{runs[0][place][name] / 2**20:,.0f} MiB" for place in (0, 1)]
        table.add_row(words, *sizes, f"{middle:.1%}  ({ratios[0]:.1%} - {ratios[-1]:.1%})")
        line[name] = {"ratio": round(middle, 4), "low": round(ratios[0], 4), "high": round(ratios[-1], 4)}
    console.print(table)
    print(json.dumps(line))  # noqa: T201
    return line
