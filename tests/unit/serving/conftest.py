"""A server of the tiny model, asked in this process: no socket is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import tiny
from unimoer import UniMoER
from unimoer.model.checkpoint import save_model
from unimoer.serving.app import create_app
from unimoer.serving.observe import Metrics
from unimoer.serving.service import Service
from unimoer.serving.settings import Settings

ROUTED = {"experts": {"embedding": 4, "reranking": 4, "shared": 8}, "router": {"type": "sparsegen"}}
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "tiny-model"
    save_model(tiny.build(base, noise=0.3), folder)
    return folder


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> UniMoER:
    return UniMoER.load(checkpoint, device="cpu")


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
