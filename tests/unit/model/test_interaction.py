"""Head `interaction`: the cosine of a prompt's two parts, which have been read together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

import tiny
from unimoer.errors import UserError
from unimoer.model.checkpoint import load_model, save_model
from unimoer.model.interaction import InteractionHead
from unimoer.model.routing import RoutingContext
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task, TokenBatch

PAIR = "<|im_start|>{query}<|im_end|>{document}"
QUERIES = ["red kettle", "where is the pond", "a"]
DOCUMENTS = ["the red kettle stands in the corner", "a pond", "the old fence lies near the window of the kitchen"]


def build(base: Path, pair: str = PAIR) -> UnifiedModel:
    prompts = {**tiny.PROMPTS, "pair": pair}
    return tiny.build(base, noise=0.1, reranking={"pooling": "mean", "head": "interaction"}, prompts=prompts)


def tokens(ids: torch.Tensor, mask: list[list[int]]) -> TokenBatch:
    return TokenBatch(ids, torch.tensor(mask), torch.zeros_like(ids))


def test_the_score_is_the_cosine_of_two_means_without_control_tokens() -> None:
    hidden = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 7, 8, 2, 9, 1, 0]])  # start, query, query, separator, document, other control, padding
    head = InteractionHead(2, [0, 1, 2])
    found = head.read(hidden, tokens(ids, [[1, 1, 1, 1, 1, 1, 0]]), "mean")
    expected = 20 * F.cosine_similarity(hidden[:, 1:3].mean(1), hidden[:, 4])
    assert torch.allclose(found, expected, atol=1e-6)


@torch.inference_mode()
def test_padding_that_is_the_separator_separates_nothing() -> None:
    hidden = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    hidden[1] = hidden[0].roll(1, 0)
    head = InteractionHead(2, [2])
    ids = torch.tensor([[7, 2, 8, 2], [2, 7, 2, 8]])
    right, left = head.read(hidden, tokens(ids, [[1, 1, 1, 0], [0, 1, 1, 1]]), "mean")
    assert float(right) == pytest.approx(float(20 * F.cosine_similarity(hidden[0, 0], hidden[0, 2], dim=0)), abs=1e-5)
    assert float(left) == pytest.approx(float(right), abs=1e-5)


@torch.inference_mode()
def test_a_pair_has_the_same_score_alone_and_padded_on_either_side(base: Path) -> None:
    model = build(base)
    ids = model.prompter.pairs(QUERIES, DOCUMENTS)
    alone = torch.cat([model.score(tiny.batch([row])) for row in ids])
    assert float(alone.std()) > 0.01
    for padding in ("left", "right"):
        assert torch.allclose(model.score(tiny.batch(ids, padding, 16)), alone, atol=1e-4)


@torch.inference_mode()
def test_the_document_is_read_with_its_query(base: Path) -> None:
    """Not a bi-encoder: with another query before it, the document's own states are others."""
    model = build(base)
    states = []
    for query in QUERIES[:2]:
        batch = tiny.batch(model.prompter.pairs([query], DOCUMENTS[:1]))
        hidden = model.decoder(batch, context=RoutingContext(Task.RERANKING, batch.attention_mask))
        states.append(hidden[0, -1])
    assert tiny.relative(states[0], states[1]) > 0.01


def test_scale_and_adapter_learn_and_return_from_disk(base: Path, tmp_path: Path) -> None:
    model = build(base)
    batch = tiny.batch(model.prompter.pairs(QUERIES, DOCUMENTS))
    model.score(batch).sum().backward()
    for name, parameter in model.trainable(Task.RERANKING).items():
        assert parameter.grad is not None, name
    assert {"head.log_scale", "head.bias"} <= model.trainable(Task.RERANKING).keys()
    assert not {name for name in model.trainable(Task.EMBEDDING) if name.startswith("head.")}
    save_model(model, tmp_path / "final")
    with torch.inference_mode():
        again = load_model(tmp_path / "final", torch.device("cpu")).score(batch)
        assert torch.equal(again, model.score(batch))


@pytest.mark.parametrize(
    "pair",
    [
        "{query}\n{document}",
        "{query}<|im_end|><|im_start|>{document}",
        "<|im_end|>{query}<|im_end|>{document}",
        "<|im_start|>{query}{document}<|im_end|>",
    ],
)
def test_a_template_without_one_separator_of_its_own_is_refused(pair: str, base: Path) -> None:
    with pytest.raises(UserError, match=r"model\.prompts\.pair: head 'interaction' needs one control token between"):
        build(base, pair)


def test_other_pooling_is_refused(base: Path) -> None:
    with pytest.raises(ValidationError, match="it needs pooling 'mean'"):
        tiny.model_config(base, reranking={"pooling": "last", "head": "interaction"})
