"""A query that is computed once for all its documents gives the scores of whole prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from unimoer.model.inference import LEAST_SHARED, Alike, score
from unimoer.model.prefix import common_beginning
from unimoer.model.scoring import score_candidates

QUERY = "the red kettle stands in the corner of the kitchen"
DOCUMENTS = ["a kettle", "the bench of oak is very old and stands in the corner", "x", "", "golden", "a kettle"]
PROMPTS = tiny.PROMPTS | {"pair": "<|im_start|>{query}<|im_end|>{document}", "max_query_tokens": 40}
EXPERTS = {"embedding": 4, "reranking": 4}
ROUTERS = [
    None,
    {"type": "hard"},
    {"type": "uniform"},
    *(
        {"type": kind, "granularity": granularity, "scope": scope}
        for kind in ("sparsegen", "softmax", "topk", "tsallis", "hierarchical", "random_frozen")
        for granularity in ("token", "causal")
        for scope in ("layer", "projection")
    ),
]
HEADS = [("linear", "mean"), ("yes_no", "last"), ("interaction", "mean")]


def build(base: Path, router: dict[str, Any] | None, head: tuple[str, str] = HEADS[0], **changes: Any) -> Any:
    adapter = {"rank": 8, "alpha": 16} | ({} if router is None else {"experts": EXPERTS, "router": router})
    reranking = {"head": head[0], "pooling": head[1], **changes.pop("reranking", {})}
    return tiny.build(base, noise=0.3, adapter=adapter, reranking=reranking, prompts=PROMPTS, **changes)


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_every_causal_arm(base: Path, router: dict[str, Any] | None) -> None:
    model = build(base, router)
    assert model.reads_apart == ""
    ids = model.prompter.pairs([QUERY] * len(DOCUMENTS), DOCUMENTS)
    assert common_beginning(ids) >= LEAST_SHARED
    np.testing.assert_allclose(Alike(model, ids).score(ids), score(model, ids), atol=2e-5)
    served = model.for_inference()
    np.testing.assert_allclose(Alike(served, ids).score(ids), score(served, ids), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_family_head_and_padding(
    bases: Callable[[str], Path], family: str, head: tuple[str, str], padding: str
) -> None:
    model = build(bases(family), {"type": "sparsegen", "granularity": "causal"}, head, padding=padding)
    ids = model.prompter.pairs([QUERY] * len(DOCUMENTS), DOCUMENTS)
    for batch_tokens in (16, 64, 8192):
        found = Alike(model, ids).score(ids, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, score(model, ids), rtol=1e-4, atol=2e-4)


def test_the_query_is_computed_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(base, None)
    ids = model.prompter.pairs([QUERY] * len(DOCUMENTS), DOCUMENTS)
    shapes: list[tuple[int, ...]] = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].input_ids.shape)))
    Alike(model, ids).score(ids, multiple=1)
    shared = common_beginning(ids)
    assert shapes[0] == (1, shared)
    assert max(length for _, length in shapes[1:]) == max(map(len, ids)) - shared


@pytest.mark.parametrize(
    ("router", "changes", "why"),
    [
        ({"type": "sparsegen", "granularity": "sequence"}, {}, "whole texts"),
        ({"type": "similarity"}, {}, "whole texts"),
        (None, {"reranking": {"attention": "bidirectional"}}, "bidirectional"),
    ],
)
def test_others_read_whole_prompts_and_say_why(base: Path, router: Any, changes: Any, why: str) -> None:
    model = build(base, router, **changes)
    assert why in model.reads_apart
    ids = model.prompter.pairs([QUERY] * len(DOCUMENTS), DOCUMENTS)
    assert (Alike(model, ids).score(ids) == score(model, ids)).all()


def test_a_hosted_decoder_reads_whole_prompts(bases: Callable[[str], Path]) -> None:
    model = build(bases("olmo2"), None)
    assert "its own code" in model.reads_apart
    score_candidates(model, [QUERY], [DOCUMENTS])


def test_candidates_of_several_queries(base: Path) -> None:
    model = build(base, {"type": "softmax", "granularity": "causal"})
    queries, groups = [QUERY, "a bench of oak", "x"], [DOCUMENTS, [], DOCUMENTS[:1]]
    told: list[tuple[int, int]] = []
    found = score_candidates(model, queries, groups, report=lambda done, total: told.append((done, total)))
    for query, group, scores in zip(queries, groups, found, strict=True):
        expected = score(model, model.prompter.pairs([query] * len(group), group)) if group else np.empty(0)
        np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert told[-1] == (7, 7) and told == sorted(told)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_beginning_is_the_longest_one(rows: list[list[int]]) -> None:
    found = common_beginning(rows)
    assert all(row[:found] == rows[0][:found] and len(row) > found for row in rows)
    if min(map(len, rows)) > found + 1:
        assert len({row[found] for row in rows}) > 1


def test_no_gradient_and_no_memory_between_requests(base: Path) -> None:
    model = build(base, {"type": "sparsegen", "granularity": "causal"})
    one, two = (model.prompter.pairs([query] * 3, DOCUMENTS[:3]) for query in (QUERY, QUERY[::-1]))
    first = Alike(model, one).score(one)
    Alike(model, two).score(two)
    assert (Alike(model, one).score(one) == first).all()
    assert not torch.is_inference_mode_enabled()
