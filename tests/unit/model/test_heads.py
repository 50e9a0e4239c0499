"""Pooling and score heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unimoer.model.heads import LinearHead, MLPHead, YesNoHead, pool

MASKS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]])


def test_last_pooling_takes_the_last_real_token_on_either_side() -> None:
    hidden = torch.arange(16.0).view(4, 4, 1)
    assert pool(hidden, MASKS, "last").flatten().tolist() == [3, 5, 11, 15]


def test_mean_pooling_averages_real_tokens() -> None:
    hidden = torch.arange(16.0).view(4, 4, 1)
    assert pool(hidden, MASKS, "mean").flatten().tolist() == [1.5, 4.5, 11, 14]


def test_a_mean_of_bfloat16_states_is_not_rounded_to_bfloat16() -> None:
    hidden = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = pool(hidden, torch.ones(4, 64, dtype=torch.long), "mean")
    assert torch.allclose(found.double(), hidden.double().mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["last", "mean"])
def test_pooled_states_are_float32_and_ignore_what_padding_holds(how: str) -> None:
    hidden = torch.randn(4, 4, 6).to(torch.bfloat16)
    found = pool(hidden, MASKS, how)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    dirty = hidden.masked_fill(~MASKS.bool().unsqueeze(-1), 1e4)
    assert torch.equal(pool(dirty, MASKS, how), found)  # type: ignore[arg-type]


def test_mean_pooling_of_bfloat16_sums_in_float32() -> None:
    """A bfloat16 sum of 512 ones stops at 256, where adding one more is rounded away."""
    hidden = torch.ones(1, 512, 3, dtype=torch.bfloat16)
    assert torch.allclose(pool(hidden, torch.ones(1, 512, dtype=torch.long), "mean"), torch.ones(1, 3))


def test_a_row_without_tokens_is_a_zero_and_not_a_nan() -> None:
    assert torch.equal(pool(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), "mean"), torch.zeros(1, 4))


def test_yes_no_head_is_the_difference_of_two_rows() -> None:
    lm_head, state = torch.randn(9, 5).to(torch.bfloat16), torch.randn(3, 5)
    head = YesNoHead(lm_head, 4, 7)
    logits = state @ lm_head.float().t()
    assert torch.allclose(head(state), logits[:, 4] - logits[:, 7], atol=1e-5)
    assert list(head.parameters()) == []
    assert head.state_dict() == {}


def test_linear_head_is_a_projection_without_bias_at_first() -> None:
    torch.manual_seed(0)
    head, state = LinearHead(64), torch.randn(5, 64)
    assert isinstance(head.projection, nn.Linear)
    assert torch.allclose(head(state), (state * head.projection.weight).sum(1), atol=1e-6)
    assert head(state).shape == (5,)
    assert float(head.projection.weight.detach().std()) == pytest.approx(1 / 8, rel=0.3)


def test_mlp_head_is_a_network_of_one_hidden_layer_without_biases_at_first() -> None:
    torch.manual_seed(0)
    head, state = MLPHead(64), torch.randn(500, 64)
    hidden = nn.functional.gelu(state @ head.hidden.weight.t())
    assert hidden.shape == (500, 32)
    assert torch.allclose(head(state), hidden @ head.projection.weight[0], atol=1e-6)
    assert 0.1 < float(head(state).detach().std()) < 2
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
