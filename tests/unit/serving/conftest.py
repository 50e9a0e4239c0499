"""A server of the tiny model, asked in this process: no socket is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from unimoer import UniMoER
from unimoer.serving.app import create_app
from unimoer.serving.observe import Metrics
from unimoer.serving.service import Service
from unimoer.serving.settings import Settings

ROUTED = {"experts": {"embedding": 4, "reranking": 4, "shared": 8}, "router": {"type": "sparsegen"}}
Serve = Callable[..., TestClient]


@pytest.fixture
def serve(model: UniMoER) -> Iterator[Serve]:
    """A client of a new server; `model`, `index`, and what `Settings` takes."""
    open_clients: list[TestClient] = []

    def make(*, model: UniMoER = model, index: Any = None, **settings: Any) -> TestClient:
        metrics = Metrics()
        service = Service(model, Settings(**settings), index=index, observe=metrics.batch)
        client = TestClient(create_app(service, metrics), raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        return client

    yield make
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(model: UniMoER) -> Iterator[TestClient]:
    """One server for the tests that change nothing."""
    metrics = Metrics()
    service = Service(model, Settings(max_texts=100), observe=metrics.batch)
    with TestClient(create_app(service, metrics), raise_server_exceptions=False) as found:
        yield found
