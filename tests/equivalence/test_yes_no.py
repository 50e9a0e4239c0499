"""The two-row head is the full LM head seen through `yes` and `no`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from unimoer.errors import UserError
from unimoer.losses.ranking import bce
from unimoer.model.unified import UnifiedModel

HEAD: dict[str, Any] = {"reranking": {"pooling": "last", "head": "yes_no"}, "prompts": {"max_document_tokens": 32}}


def answer_logits(model: UnifiedModel, base: Path, prompts: list[list[int]]) -> torch.Tensor:
    """Logits of (no, yes) at the last position, from the causal LM of transformers, one prompt at a time."""
    full = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    words = [model.tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
    return torch.stack([full(torch.tensor([prompt])).logits[0, -1, words] for prompt in prompts])


# Tied embeddings, and an LM head of its own.
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "olmo2"])
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_sigmoid_of_the_score_is_the_softmax_of_the_answers(
    family: str, padding: str, bases: Callable[[str], Path]
) -> None:
    model = tiny.build(bases(family), padding=padding, **HEAD)
    prompts = model.prompter.pairs(
        ["where is the red kettle", "find my spoon", "a"], ["The kettle.", "The red plate lies near it.", ""]
    )
    logits = answer_logits(model, bases(family), prompts)
    scores = model.score(tiny.batch(prompts, padding, 16))
    # Relative to 1: a probability. The logits themselves agree to a few float32 roundings.
    assert torch.allclose(scores.sigmoid(), logits.softmax(-1)[:, 1], atol=1e-5)
    assert torch.allclose(scores, logits[:, 1] - logits[:, 0], atol=1e-4)

    answers = torch.tensor([1, 0, 1])
    loss, terms = bce(scores.view(3, 1), answers.view(3, 1).float())
    two_way = torch.nn.functional.cross_entropy(logits, answers)
    assert torch.allclose(loss, two_way, atol=1e-5)
    assert terms["bce"] == pytest.approx(float(two_way), abs=1e-5)


def test_the_head_is_not_trained_and_not_saved(base: Path) -> None:
    model = tiny.build(base, **HEAD)
    assert not [name for name in model.trainable() if name.startswith("head")]


def test_an_answer_of_two_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].remove(["y", "es"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.reranking\.head: 'yes' is not one token of .*; use 'linear'"):
        tiny.build(folder, **HEAD)
