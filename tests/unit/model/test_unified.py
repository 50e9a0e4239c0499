"""Which way of attention each task takes, and that it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.errors import UserError
from unimoer.model.checkpoint import load_model, save_model
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task, TokenBatch

Bases = Callable[[str], Path]
WAYS = ("causal", "bidirectional")


def build(folder: Path, embedding: str, reranking: str, **changes: Any) -> UnifiedModel:
    """Pools the last token for both tasks, where every difference between the ways must show."""
    ways: dict[str, Any] = {
        "embedding": {"pooling": "last", "attention": embedding},
        "reranking": {"pooling": "last", "head": "linear", "attention": reranking},
    }
    return tiny.build(folder, noise=0.1, **ways, **changes)


def first_state(model: UnifiedModel, task: Task, batch: TokenBatch) -> Tensor:
    """The decoder's state at position 0, seen on its way to the pooling."""
    seen: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda module, arguments, states: seen.append(states))
    with torch.no_grad():
        (model.embed if task is Task.EMBEDDING else model.score)(batch)
    handle.remove()
    return seen[0][:, 0]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("embedding", WAYS)
@pytest.mark.parametrize("reranking", WAYS)
def test_the_last_token_reaches_the_first_where_attention_is_bidirectional(
    family: str, embedding: str, reranking: str, bases: Bases, tmp_path: Path
) -> None:
    """Per task, and after a round trip through a checkpoint."""
    model = build(bases(family), embedding, reranking)
    save_model(model, tmp_path / "final")
    one, other = tiny.ids([8, 8])
    batch = tiny.batch([one, [*one[:-1], other[-1]]])
    for found in (model, load_model(tmp_path / "final", tiny.CPU)):
        for task, way in ((Task.EMBEDDING, embedding), (Task.RERANKING, reranking)):
            states = first_state(found, task, batch)
            if way == "causal":
                assert torch.equal(states[0], states[1])
            else:
                assert not torch.allclose(states[0], states[1], atol=1e-3)


@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_bidirectional_attention_sees_no_padding(padding: str, base: Path) -> None:
    model, sequences = build(base, "bidirectional", "bidirectional"), tiny.ids([5, 16, 1])
    batch = tiny.batch(sequences, padding, 24)
    vectors, scores = model.embed(batch), model.score(batch)
    for row, sequence in enumerate(sequences):
        alone = tiny.batch([sequence])
        assert tiny.relative(vectors[row], model.embed(alone)[0]) < 1e-5
        assert torch.allclose(scores[row], model.score(alone)[0], atol=1e-5)


def test_another_family_says_that_it_has_no_bidirectional_attention(bases: Bases) -> None:
    model = build(bases("olmo2"), "bidirectional", "causal")
    batch = tiny.batch(tiny.ids([4]))
    model.score(batch)
    with pytest.raises(UserError, match="bidirectional attention needs one of the fused families"):
        model.embed(batch)


@pytest.mark.parametrize(
    "adapter",
    [
        {"experts": {"a": 2, "b": 2}, "router": {"type": "softmax"}},
        {"experts": {"shared": (4, 2, 4)}},
    ],
    ids=["routed", "by layer"],
)
def test_another_family_refuses_what_its_own_code_cannot_do(adapter: dict[str, Any], bases: Bases) -> None:
    """Rather than train something else quietly."""
    with pytest.raises(UserError, match=r"needs? one of the fused families: llama, mistral, qwen2, qwen3"):
        tiny.build(bases("olmo2"), adapter={"rank": 4, **adapter})


def test_ranks_listed_for_another_number_of_layers_are_refused(base: Path) -> None:
    with pytest.raises(UserError, match="ranks are listed for 2 layers, the model has 3"):
        tiny.build(base, adapter={"rank": 4, "experts": {"shared": (4, 2)}})


def test_a_model_that_was_evaluated_can_be_trained_on(base: Path, tmp_path: Path) -> None:
    """What is kept from a pass in inference mode must not stand in the way of a gradient later."""
    adapter = {"rank": 4, "experts": {"a": 2, "b": 2}, "router": {"type": "softmax"}}
    save_model(tiny.build(base, adapter=adapter), tmp_path / "final")
    model = load_model(tmp_path / "final", tiny.CPU).train()
    model.embed(tiny.batch(tiny.ids([5, 3])))[0, :5].sum().backward()
    assert all(p.grad is not None for name, p in model.trainable(Task.EMBEDDING).items() if ".b." in name)
