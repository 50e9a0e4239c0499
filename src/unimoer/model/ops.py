"""The differentiable operations of a decoder layer whose weights are frozen.

Each is written for the case that matters here: bfloat16 on a CPU, short sequences, no gradient for the base
weights. PyTorch's own CPU kernels for RMSNorm and for the backward of scaled-dot-product attention cost more
than the layer's matrix products at these sizes; the versions below stay within a few memory passes. On other
devices the fused kernels of PyTorch are used.

Gradients with respect to a frozen weight are returned if, and only if, that weight asks for them: the gradient
probe (`training.conflict`) switches this on for a moment to measure a quantity that does not depend on the
factorisation of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EAGER_ATTENTION_MAX_LENGTH = 512
"""Above this many tokens the T x T score matrix costs more than PyTorch's blocked CPU kernel loses."""


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        # The norm in float32: a bfloat16 reduction would rescale whole rows by up to 0.4%.
        norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        rstd = torch.rsqrt(norm * norm / x.shape[-1] + eps)
        normed = (x32 * rstd).to(x.dtype)
        ctx.save_for_backward(normed, weight, rstd)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, weight, rstd = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        scaled = (grad * weight).float()
        normed32 = normed.float()
        projection = (scaled * normed32).mean(-1, keepdim=True)
        grad_x = scaled.addcmul_(normed32, projection, value=-1).mul_(rstd)
        return grad_x.to(grad.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation of the last dimension, times `weight`."""
    if x.device.type == "cpu":
        if not torch.is_grad_enabled():
            x32 = x.float()
            norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
            return (x32 * torch.rsqrt(norm * norm / x.shape[-1] + eps)).to(x.dtype).mul_(weight)
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        width = gate_up.shape[-1] // 2
        activated = F.silu(gate_up[..., :width])
        ctx.save_for_backward(gate_up, activated)
        return activated * gate_up[..., width:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        width = gate_up.shape[-1] // 2
        gate, up = gate_up[..., :width], gate_up[..., width:]
        # Both halves are written into one buffer: the next product reads them as one matrix.
        grad_in = torch.empty_like(gate_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_in[..., :width])
        torch.mul(grad, activated, out=grad_in[..., width:])
        return grad_in


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` for `gate_up = [gate | up]`, `[..., 2 * width] -> [..., width]`."""
    if not torch.is_grad_enabled():
        width = gate_up.shape[-1] // 2
        return F.silu(gate_up[..., :width]).mul_(gate_up[..., width:])
    return _SwiGLU.apply(gate_up)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, sign: int) -> None:
    """Rotate `x` into `out`, of the same shape and any strides, in two passes over each half."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
        query, key, value = _heads_of(qkv, heads, kv_heads)
        cos, sin = cos.transpose(1, 2), sin.transpose(1, 2)
        out_query = torch.empty(query.shape, dtype=qkv.dtype, device=qkv.device)
        out_key = torch.empty(key.shape, dtype=qkv.dtype, device=qkv.device)
        _rotate(query, cos.unsqueeze(1), sin.unsqueeze(1), out_query, 1)
        _rotate(key, cos, sin, out_key, 1)
        ctx.save_for_backward(cos, sin)
        ctx.heads, ctx.kv_heads, ctx.shape = heads, kv_heads, qkv.shape
        return out_query, out_key, value.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        # One buffer for all three: slices of it, each with its own backward, would be zero-filled and added up.
        grad = torch.empty(ctx.shape, dtype=grads[0].dtype, device=grads[0].device)
        query, key, value = _heads_of(grad, ctx.heads, ctx.kv_heads)
        # A rotation's transpose is the rotation back.
        _rotate(grads[0], cos.unsqueeze(1), sin.unsqueeze(1), query, -1)
        _rotate(grads[1], cos, sin, key, -1)
        value.copy_(grads[2])
        return grad, None, None, None, None


def _heads_of(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views `[B, KV, G, T, D]`, `[B, KV, T, D]`, `[B, KV, T, D]` of `[B, T, (H + 2 KV) * D]`."""
    batch, length, width = qkv.shape
    split = qkv.view(batch, length, heads + 2 * kv_heads, width // (heads + 2 * kv_heads))
    query, key, value = split.split([heads, kv_heads, kv_heads], dim=2)
    grouped = query.unflatten(2, (kv_heads, heads // kv_heads))
    return grouped.permute(0, 2, 3, 1, 4), key.transpose(1, 2), value.transpose(1, 2)


def split_heads(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stacked projections -> rotated queries and keys, and values, laid out for `attention`.

    `qkv [B, T, (H + 2 KV) * D]`; `cos`, `sin` `[B, T, 1, D/2]` in its dtype, for the half-split rotary embedding of
    Llama and Qwen. Query heads are grouped by the key head they share: `[B, KV, G, T, D]`, `[B, KV, T, D]` twice.
    """
    query, key, value = _SplitHeads.apply(qkv, cos, sin, heads, kv_heads)
    return query, key, value


class _EagerAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        # One product a key head serves its whole group of query heads, which lie one after the other as rows.
        rows = query.flatten(2, 3)
        products = torch.matmul(rows, key.transpose(-1, -2))
        # The sum is float32, in one pass: the mask's dtype decides.
        scores = torch.add(mask.unsqueeze(2), products.view(*query.shape[:4], key.shape[2]), alpha=scale)
        probabilities = torch.softmax(scores, dim=-1).to(query.dtype).view(products.shape)
        ctx.save_for_backward(rows, key, value, probabilities)
        ctx.scale = scale
        return torch.matmul(probabilities, value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, key, value, probabilities = ctx.saved_tensors
        shape = grad.shape
        grad = grad.flatten(2, 3)
        grad_value = torch.matmul(probabilities.transpose(-1, -2), grad)
        grad_scores = torch.ops.aten._softmax_backward_data(
            torch.matmul(grad, value.transpose(-1, -2)).float(), probabilities.float(), -1, torch.float32
        )
        grad_scores = grad_scores.mul_(ctx.scale).to(key.dtype)
        grad_query = torch.matmul(grad_scores, key).view(shape)
        grad_key = torch.matmul(grad_scores.transpose(-1, -2), rows)
        return grad_query, grad_key, grad_value, None, None


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What an accelerator's kernel is asked for."""

    masked: bool
    """Give it the additive mask; otherwise `causal` says all."""
    causal: bool
    shared: bool
    """Let a group of query heads share a key head; otherwise keys and values are repeated."""


def attention_form(mask: Tensor, dtype: torch.dtype, *, causal: bool) -> AttentionForm:
    """The form for which PyTorch has a fused CUDA kernel; `mask [B, T]` is 1 for real tokens.

    Flash attention takes no mask and shares key heads, in half precision; the memory-efficient kernel takes a mask and
    float32 and shares nothing. Asked for a mask and shared heads together, PyTorch falls back to float32 products.
    Under right padding the causal rule keeps real tokens from the padding, which comes after them.
    """
    before = mask[:, :-1] >= mask[:, 1:] if causal else mask.bool()
    masked = not bool(before.all())
    shared = not masked and dtype in (torch.float16, torch.bfloat16)
    return AttentionForm(masked, causal and not masked, shared)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, form: AttentionForm
) -> Tensor:
    """PyTorch's kernels: `[B, KV, G, T, D]` and `[B, KV, S, D]` twice -> the shape of `query`."""
    return attend(query.flatten(1, 2), key, value, mask, scale, form).view(query.shape)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, form: AttentionForm) -> Tensor:
    """PyTorch's kernels: `[B, H, T, D]` and `[B, KV, S, D]` twice, of any strides, -> `[B, H, T, D]`."""
    group = query.shape[1] // key.shape[1]
    if group > 1 and not form.shared:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask.to(query.dtype),
        is_causal=form.causal,
        scale=scale,
        enable_gqa=group > 1 and form.shared,
    )


def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor, turned: int, head_dim: int) -> Tensor:
    """Queries and keys of stacked projections `[B, T, (H + 2 KV) * D]`, rotated: `[B, T, turned, D]`; no gradient.

    `cos`, `sin` `[B, T, 1, D/2]`. The layout stays that of the product: the kernels take heads of any stride.
    """
    source = qkv.unflatten(-1, (-1, head_dim))[:, :, :turned]
    out = torch.empty(source.shape, dtype=qkv.dtype, device=qkv.device)
    _rotate(source, cos, sin, out, 1)
    return out


MASKED = AttentionForm(masked=True, causal=False, shared=True)
"""Of every device but CUDA: its kernel takes both, and repeating keys would be one more pass over them."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, form: AttentionForm = MASKED
) -> Tensor:
    """Grouped-query attention, `[B, KV, G, T, D]` and `[B, KV, S, D]` twice -> `[B, T, H * D]`.

    `mask` is additive float32, `[B, 1, T, S]`, or None where `form` needs none. Scores and softmax are float32. On a
    CPU with short sequences the scores are materialised: the blocked kernel's backward costs ten times as much there.
    """
    if query.device.type == "cpu" and mask is not None and key.shape[2] <= EAGER_ATTENTION_MAX_LENGTH:
        out = _EagerAttention.apply(query, key, value, mask, scale)
    else:
        out = fused_attention(query, key, value, mask, scale, form)
    # [B, KV, G, T, D] -> [B, T, KV, G, D]
    return out.permute(0, 3, 1, 2, 4).flatten(2)


@dataclass(frozen=True, slots=True)
class Block:
    """One adapted projection's part of one expert in the stacked products."""

    expert: int
    b_rows: slice
    """In the expert's B."""
    out_rows: slice
    """In the stacked output."""
    columns: slice
    """Among the hidden ranks."""


Layout = Sequence[Block]


def _stack_b(b: Sequence[Tensor], scale: Tensor, layout: Layout, rows: int, dtype: torch.dtype) -> Tensor:
    """Every expert's `[target rows, r]` -> `[rows, P*R]`: each projection's rows see only its own ranks.

    One wide product beats P * E narrow ones: at these ranks a product costs a pass over its output.
    """
    if len(layout) == 1 and len(b[0]) == rows:
        return (b[0] * scale).to(dtype)
    stacked = torch.zeros(rows, len(scale), dtype=dtype, device=scale.device)
    for block in layout:
        stacked[block.out_rows, block.columns] = b[block.expert][block.b_rows] * scale[block.columns]
    return stacked


class _LoRALinear(torch.autograd.Function):
    """Written by hand for three savings: no cast of the input, no copy for the sum, no gradient of the base."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_adapter: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        layout: Layout,
        routing: Tensor | None,
        residual: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        experts = len(factors) // 2
        a, b = factors[:experts], factors[experts:]
        flat = x.flatten(0, -2)
        flat_adapter = flat if x_adapter is x else x_adapter.flatten(0, -2)
        a_low = (a[0] if experts == 1 else torch.cat(a)).to(x.dtype)
        b_low = _stack_b(b, scale, layout, len(weight), x.dtype)
        hidden = torch.mm(flat_adapter, a_low.t())
        routed = hidden if routing is None else weigh(hidden, routing)
        if residual is None:
            y = F.linear(flat, weight, bias)
        else:
            y = torch.addmm(residual.flatten(0, -2), flat, weight.t())
            if bias is not None:
                y.add_(bias)
        y.addmm_(routed, b_low.t())
        ctx.save_for_backward(flat_adapter, weight, a_low, b_low, scale, hidden, routed, routing)
        ctx.flat = flat if flat_adapter is not flat and ctx.needs_input_grad[2] else None
        ctx.layout, ctx.shape = layout, x.shape
        ctx.a_rows = [len(tensor) for tensor in a]
        ctx.b_shapes = [tensor.shape for tensor in b]
        ctx.has_residual, ctx.shared_input = residual is not None, x_adapter is x
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat_adapter, weight, a_low, b_low, scale, hidden, routed, routing = ctx.saved_tensors
        g = grad.flatten(0, -2)
        grad_hidden = grad_routed = torch.mm(g, b_low)
        grad_routing = grad_x = grad_adapter = grad_weight = None
        if routing is not None:
            grad_hidden = weigh(grad_routed, routing)
            if ctx.needs_input_grad[6]:
                product = (grad_routed.float() * hidden.float()).view(*ctx.shape[:-1], -1)
                grad_routing = product if product.shape == routing.shape else product.sum(1, keepdim=True)
        experts = len(ctx.a_rows)
        wanted = ctx.needs_input_grad[8:]
        grads: list[Tensor | None] = [None] * (2 * experts)
        if any(wanted[:experts]):
            stacked = torch.mm(grad_hidden.t(), flat_adapter).float()
            for index, part in enumerate(stacked.split(ctx.a_rows)):
                grads[index] = part if wanted[index] else None
        if any(wanted[experts:]):
            # As routed^T g rather than g^T routed: a quarter faster, the wide matrix is not packed.
            stacked = torch.mm(routed.t(), g)
            for index, shape in enumerate(ctx.b_shapes):
                if wanted[experts + index]:
                    grads[experts + index] = torch.empty(shape, device=g.device)
            for block in ctx.layout:
                target = grads[experts + block.expert]
                if target is not None:
                    found = stacked[block.columns, block.out_rows].t()
                    torch.mul(found, scale[block.columns], out=target[block.b_rows])
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(g, weight)
            if ctx.shared_input:
                grad_x.addmm_(grad_hidden, a_low)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1] and not ctx.shared_input:
            grad_adapter = torch.mm(grad_hidden, a_low).view(ctx.shape)
        if ctx.needs_input_grad[2]:
            grad_weight = torch.mm(g.t(), flat_adapter if ctx.flat is None else ctx.flat)
        grad_residual = grad if ctx.has_residual else None
        return grad_x, grad_adapter, grad_weight, None, None, None, grad_routing, grad_residual, *grads


def weigh(hidden: Tensor, routing: Tensor) -> Tensor:
    """`[B*T, R] * [B, T or 1, R]`, in the precision of the first."""
    weighed = hidden.view(len(routing), -1, hidden.shape[-1]) * routing.to(hidden.dtype)
    return weighed.view(hidden.shape)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: Tensor,
    layout: Layout,
    *,
    bias: Tensor | None = None,
    x_adapter: Tensor | None = None,
    routing: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`y = x W^T + bias + (w * (x_a A^T)) (s * B)^T + residual`, in two small products however many experts there are.

    LoRA: Hu et al., ICLR 2022, arXiv 2106.09685.

    Args:
        x: `[..., d_in]`; `[B, T, d_in]` with routing.
        weight: frozen, `[d_out, d_in]`: the stacked projections of one input.
        a: of each expert, float32, `[P * r, d_in]` for P adapted projections.
        b: of each expert, float32, `[rows of the adapted projections, r]`.
        scale: `[P*R]`, R the sum of the ranks, multiplies the columns of the stacked B.
        layout: where each expert's part of each adapted projection stands.
        x_adapter: what the low-rank path reads instead of `x` (dropout).
        routing: float32, `[B, T or 1, P*R]`, multiplies the ranks between the two products.
        residual: `[..., d_out]`, added inside the product.
    """
    return _LoRALinear.apply(
        x, x if x_adapter is None else x_adapter, weight, bias, scale, layout, routing, residual, *a, *b
    )
