"""Requests made from the server's own OpenAPI description: none ends in an error of the server."""

from __future__ import annotations

from collections import defaultdict

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from starlette.testclient import TestClient

from unimoer import UniMoER
from unimoer.serving.app import create_app
from unimoer.serving.observe import Metrics
from unimoer.serving.service import Service
from unimoer.serving.settings import Settings


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_that_fits_or_nearly_fits_breaks_it(model: UniMoER, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(Service(model, Settings()), Metrics()))
    seen: dict[str, set[int]] = defaultdict(set)
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            # What takes nothing cannot be asked wrongly.
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call()
            case.validate_response(answer, checks=[not_a_server_error])
            seen[case.path].add(answer.status_code)

        ask()
    wanted = 200 if mode is GenerationMode.POSITIVE else 400
    assert all(wanted in seen[path] for path in ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/routing"))


def test_every_path_says_what_it_does_and_how_it_fails(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    for path, methods in found["paths"].items():
        for method in methods.values():
            assert method["description"], path
            assert "ErrorBody" in str(method["responses"]["400"])
    assert {"/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/search"} <= found["paths"].keys()
