"""The decoder's forward pass: token batch in, normalised hidden states out.

`FusedDecoder` runs the pre-norm, rotary, SwiGLU architecture that Llama, Mistral, Qwen2 and Qwen3 share, from the
weights of a Hugging Face model, with projections of one input fused and everything an expert router needs passed
as an argument. `HostedDecoder` runs any other decoder through its own `transformers` code with the same adapter
in place of its linear layers. A test holds both to the outputs of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from unimoer.config import AdapterConfig
from unimoer.config.model import ALL_PROJECTIONS
from unimoer.errors import UserError, did_you_mean
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.ops import attention, rms_norm, split_heads, swiglu
from unimoer.types import TokenBatch

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def attention_mask(batch: TokenBatch, *, causal: bool) -> Tensor:
    """Additive float32 mask `[B, 1, T, T]`: real keys only and, when causal, none from the future.

    Float16's minimum stands for minus infinity: a padding query under left padding sees no key at all, and a row of
    infinities would make it, and then everything, NaN. Float32's minimum is an infinity in the shorter formats.
    """
    allowed = batch.attention_mask[:, None, None, :].bool()
    length = batch.input_ids.shape[1]
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=allowed.device).tril()
    else:
        allowed = allowed.expand(-1, -1, length, -1)
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, torch.finfo(torch.float16).min)


def _fuse(parent: nn.Module, names: Sequence[str], adapter: AdapterConfig) -> MoELoRALinear:
    """Replace the named linear layers of `parent` by one; the originals are dropped to free their memory."""
    linears = {name: getattr(parent, name) for name in names}
    fused = MoELoRALinear(
        linears,
        targets=adapter.targets,
        ranks={"shared": adapter.rank},
        alpha=adapter.alpha,
        dropout=adapter.dropout,
    )
    for name in names:
        delattr(parent, name)
    return fused


class FusedLayer(nn.Module):
    """One pre-norm decoder layer: attention, then SwiGLU, each added to the residual stream inside its last product."""

    def __init__(self, layer: Any, adapter: AdapterConfig) -> None:
        super().__init__()
        source = layer.self_attn
        self.head_dim = int(source.head_dim)
        self.scale = float(source.scaling)
        self.eps = float(layer.input_layernorm.variance_epsilon)
        self.qkv = _fuse(source, ("q_proj", "k_proj", "v_proj"), adapter)
        self.heads, self.kv_heads = (size // self.head_dim for size in self.qkv.sizes[:2])
        self.o = _fuse(source, ("o_proj",), adapter)
        self.gate_up = _fuse(layer.mlp, ("gate_proj", "up_proj"), adapter)
        self.down = _fuse(layer.mlp, ("down_proj",), adapter)
        self.attention_norm: nn.Parameter = layer.input_layernorm.weight
        self.mlp_norm: nn.Parameter = layer.post_attention_layernorm.weight
        self.q_norm: nn.Parameter | None = source.q_norm.weight if hasattr(source, "q_norm") else None
        self.k_norm: nn.Parameter | None = source.k_norm.weight if hasattr(source, "k_norm") else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, routing: Tensor | None) -> Tensor:
        qkv = self.qkv(rms_norm(x, self.attention_norm, self.eps), routing)
        if self.q_norm is not None and self.k_norm is not None:
            qkv = self._normalise_heads(qkv, self.q_norm, self.k_norm)
        query, key, value = split_heads(qkv, cos, sin, self.heads, self.kv_heads)
        x = self.o(attention(query, key, value, mask, self.scale), routing, residual=x)
        hidden = swiglu(self.gate_up(rms_norm(x, self.mlp_norm, self.eps), routing))
        return self.down(hidden, routing, residual=x)

    def _normalise_heads(self, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        """Qwen3 normalises every query and key head before the rotation."""
        parts = qkv.split(self.qkv.sizes, dim=-1)
        query, key = (part.unflatten(-1, (-1, self.head_dim)) for part in parts[:2])
        query, key = rms_norm(query, q_norm, self.eps), rms_norm(key, k_norm, self.eps)
        return torch.cat([query.flatten(2), key.flatten(2), parts[2]], dim=-1)


class FusedDecoder(nn.Module):
    """The shared architecture of `FUSED_FAMILIES`; takes over, and takes apart, a loaded `transformers` model."""

    def __init__(self, model: PreTrainedModel, adapter: AdapterConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        body: Any = model.base_model
        for target in adapter.targets:
            if target not in ALL_PROJECTIONS:
                hint = did_you_mean(target, ALL_PROJECTIONS)
                raise UserError(f"model.adapter.targets: no projection '{target}'{hint}")
        self.embedding: nn.Parameter = body.embed_tokens.weight
        self.layers = nn.ModuleList(FusedLayer(layer, adapter) for layer in body.layers)
        self.norm: nn.Parameter = body.norm.weight
        self.eps = float(body.norm.variance_epsilon)
        self.rotary_embedding: nn.Module = body.rotary_emb
        self.checkpointing = checkpointing

    def forward(self, batch: TokenBatch, *, causal: bool = True, routing: Tensor | None = None) -> Tensor:
        """`[B, T] -> [B, T, d]`, after the final norm, in the base model's dtype."""
        x = F.embedding(batch.input_ids, self.embedding)
        cos, sin = self.rotary_embedding(x, batch.position_ids)
        half = cos.shape[-1] // 2
        cos, sin = cos[:, :, None, :half].contiguous(), sin[:, :, None, :half].contiguous()
        mask = attention_mask(batch, causal=causal)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, routing, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, routing)
        return rms_norm(x, self.norm, self.eps)


class HostedDecoder(nn.Module):
    """Any other decoder, through its own `transformers` forward, with adapters in place of its linear layers."""

    def __init__(self, model: PreTrainedModel, adapter: AdapterConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.body: Any = model.base_model
        replaced: set[str] = set()
        for parent in list(self.body.modules()):
            for name, child in list(parent.named_children()):
                if name in adapter.targets and isinstance(child, nn.Linear):
                    setattr(
                        parent,
                        name,
                        MoELoRALinear(
                            {name: child},
                            targets=adapter.targets,
                            ranks={"shared": adapter.rank},
                            alpha=adapter.alpha,
                            dropout=adapter.dropout,
                        ),
                    )
                    replaced.add(name)
        unknown = set(adapter.targets) - replaced
        if unknown:
            raise UserError(
                f"model.adapter.targets: '{min(unknown)}' is no linear layer of {type(model).__name__}; "
                "name its projections"
            )
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            # Checkpointed segments need an input that carries a gradient, and the embedding is frozen.
            model.enable_input_require_grads()

    def forward(self, batch: TokenBatch, *, causal: bool = True, routing: Tensor | None = None) -> Tensor:
        """`[B, T] -> [B, T, d]`."""
        if not causal or routing is not None:
            raise UserError(
                "bidirectional attention and routed experts need one of the fused families: "
                + ", ".join(FUSED_FAMILIES)
            )
        return self.body(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state


def build_decoder(model: PreTrainedModel, adapter: AdapterConfig, *, checkpointing: bool = False) -> nn.Module:
    """The fused decoder where the architecture is known and has no sliding window, the hosted one elsewhere."""
    config = model.config
    sliding = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])
    sliding = sliding or (config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None)
    gated = getattr(config, "hidden_act", None) == "silu"
    if config.model_type in FUSED_FAMILIES and gated and not sliding:
        return FusedDecoder(model, adapter, checkpointing=checkpointing)
    return HostedDecoder(model, adapter, checkpointing=checkpointing)
