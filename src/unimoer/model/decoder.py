"""The decoder's forward pass: token batch in, normalised hidden states out.

`FusedDecoder` runs the pre-norm, rotary, SwiGLU architecture that Llama, Mistral, Qwen2 and Qwen3 share, from the
weights of a Hugging Face model, with projections of one input fused and everything an expert router needs passed
as an argument. `HostedDecoder` runs any other decoder through its own `transformers` code with the same adapter
in place of its linear layers. A test holds both to the outputs of `transformers`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from unimoer.config import ALL_PROJECTIONS, AdapterConfig
from unimoer.errors import UserError, did_you_mean
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.listwise import Marks
from unimoer.model.ops import (
    MASKED,
    attend,
    attention,
    attention_form,
    rms_norm,
    rotate_heads,
    split_heads,
    swiglu,
)
from unimoer.model.packing import Packing
from unimoer.model.places import Places
from unimoer.model.prefix import Prefix
from unimoer.model.routers import RouterFactory
from unimoer.model.routing import Routing, RoutingContext, RoutingTrace
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


Decisions = dict[str, Routing]
"""Of one layer, by what they route: `layer`, or a group of projections."""


def _own(parameter: nn.Parameter) -> nn.Parameter:
    """A copy: a single weight that is left in the mapped file keeps every page of the file that was read resident."""
    return nn.Parameter(parameter.detach().clone(), requires_grad=False)


class FusedLayer(nn.Module):
    """One pre-norm decoder layer: attention, then SwiGLU, each added to the residual stream inside its last product."""

    def __init__(self, layer: Any, adapter: AdapterConfig, index: int, factory: RouterFactory | None) -> None:
        super().__init__()
        self.index = index
        source = layer.self_attn
        self.head_dim = int(source.head_dim)
        self.scale = float(source.scaling)
        self.eps = float(layer.input_layernorm.variance_epsilon)
        ranks = adapter.ranks(index)

        def fuse(parent: nn.Module, *names: str) -> MoELoRALinear:
            # The originals are dropped: two copies of the weights would double the memory.
            linears = {name: getattr(parent, name) for name in names}
            for name in names:
                delattr(parent, name)
            return MoELoRALinear(linears, adapter, ranks)

        self.qkv = fuse(source, "q_proj", "k_proj", "v_proj")
        self.heads, self.kv_heads = (size // self.head_dim for size in self.qkv.sizes[:2])
        self.o = fuse(source, "o_proj")
        self.gate_up = fuse(layer.mlp, "gate_proj", "up_proj")
        self.down = fuse(layer.mlp, "down_proj")
        self.attention_norm = _own(layer.input_layernorm.weight)
        self.mlp_norm = _own(layer.post_attention_layernorm.weight)
        self.q_norm = _own(source.q_norm.weight) if hasattr(source, "q_norm") else None
        self.k_norm = _own(source.k_norm.weight) if hasattr(source, "k_norm") else None
        self.routers = nn.ModuleDict()
        if factory is not None:
            groups = {"layer": self.qkv} if factory.config.scope == "layer" else self._groups()
            for name, group in groups.items():
                router = factory(tuple(ranks), len(adapter.owners(index)), group.weight.shape[1], index)
                self.routers[name] = router.to(group.weight.device)

    def _groups(self) -> dict[str, MoELoRALinear]:
        groups = {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}
        return {name: group for name, group in groups.items() if group.targets}

    def forward(
        self,
        x: Tensor,
        places: Places,
        context: RoutingContext | None,
    ) -> tuple[Tensor, Decisions]:
        """`x [B, T, d]`, or `[1, N, d]` if it is packed; attention and routers see `[B, T]` either way."""
        packing = places.packing
        decisions: Decisions = {}
        # As the products read them: by packed token.
        used: Decisions = {}

        def project(name: str, states: Tensor, residual: Tensor | None = None, *, read: Tensor | None = None) -> Tensor:
            """`read` is what a router reads instead of `states`: those before the norm."""
            group: MoELoRALinear = getattr(self, name)
            if context is not None and context.bare:
                return group(states, Routing(()), residual)
            router = name if name in self.routers else "layer"
            if context is not None and router in self.routers and router not in decisions:
                whole = states if read is None else read
                whole = whole if packing is None else packing.unpack(whole)
                decided = decisions[router] = self.routers[router](whole, context)
                if packing is not None and decided.weights is not None:
                    decided = Routing(decided.experts, packing.spread(decided.weights))
                used[router] = decided
            return group(states, used.get(router), residual)

        qkv = project("qkv", rms_norm(x, self.attention_norm, self.eps), read=x)
        if self.q_norm is not None and self.k_norm is not None:
            qkv = self._normalise_heads(qkv, self.q_norm, self.k_norm)
        # In training, what is computed without gradients is compared with what has them, to the last bit.
        mix = self._mix if self.training or torch.is_grad_enabled() else self._mix_for_inference
        x = project("o", mix(qkv, places), x)
        hidden = swiglu(project("gate_up", rms_norm(x, self.mlp_norm, self.eps), read=x))
        return project("down", hidden, x), decisions

    def _mix(self, qkv: Tensor, places: Places) -> Tensor:
        """Attention over stacked projections, packed as they are."""
        if places.packing is not None:
            qkv = places.packing.unpack(qkv)
        query, key, value = split_heads(qkv, places.cos, places.sin, self.heads, self.kv_heads)
        mixed = attention(query, key, value, places.mask, self.scale, places.form)
        return mixed if places.packing is None else places.packing.pack(mixed)

    def _mix_for_inference(self, qkv: Tensor, places: Places) -> Tensor:
        """The same without gradients, in fewer passes over memory; behind a prefix if there is one."""
        packing, turned = places.packing, self.heads + self.kv_heads
        rotated = rotate_heads(qkv, *places.packed, turned, self.head_dim).flatten(2)
        values = qkv[:, :, turned * self.head_dim :]
        if packing is not None:
            rotated, values = packing.unpack(rotated), packing.unpack(values)
        both = rotated.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key = both[:, : self.heads], both[:, self.heads :]
        value = values.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if places.prefix is not None:
            key, value = places.prefix.attend(self.index, key, value)
        mixed = attend(query, key, value, places.low_mask, self.scale, places.form).transpose(1, 2).flatten(2)
        return mixed if packing is None else packing.pack(mixed)

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
        self.embedding = _own(body.embed_tokens.weight)
        if adapter.layers not in (None, len(body.layers)):
            raise UserError(
                f"model.adapter.experts: ranks are listed for {adapter.layers} layers, the model has {len(body.layers)}"
            )
        factory = None if adapter.router is None else RouterFactory(adapter.router, len(body.layers))
        self.layers = nn.ModuleList(
            FusedLayer(layer, adapter, index, factory) for index, layer in enumerate(body.layers)
        )
        self.norm = _own(body.norm.weight)
        self.eps = float(body.norm.variance_epsilon)
        self.rotary_embedding: nn.Module = body.rotary_emb
        self.checkpointing = checkpointing

    @staticmethod
    def tokens_computed(batch: TokenBatch) -> int:
        """Positions that the layers compute, padding among them."""
        return Packing.size(batch.attention_mask)

    def forward(
        self,
        batch: TokenBatch,
        *,
        causal: bool = True,
        context: RoutingContext | None = None,
        trace: RoutingTrace | None = None,
        marks: Marks | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """`[B, T] -> [B, T, d]`, after the final norm, in the base model's dtype.

        Without a `context` all experts are added up; `trace` is told every decision; `marks` replace tokens; `prefix`
        stands before all rows, or is filled if it was not read yet, under causal attention only.
        """
        packing = Packing.of(batch.attention_mask)
        x = F.embedding(batch.input_ids, self.embedding)
        if marks is not None:
            x = marks.put(x)
        behind = prefix is not None and prefix.read
        places = batch.position_ids + prefix.length if prefix is not None and behind else batch.position_ids
        cos, sin = self.rotary_embedding(x, places)
        half = cos.shape[-1] // 2
        cos, sin = cos[:, :, None, :half].contiguous(), sin[:, :, None, :half].contiguous()
        form = MASKED
        if x.device.type == "cuda" and not behind:
            form = attention_form(batch.attention_mask, x.dtype, causal=causal)
        mask = attention_mask(batch, causal=causal) if form.masked else None
        if mask is not None and prefix is not None and behind:
            # Every token sees all of what stands before.
            mask = F.pad(mask, (prefix.length, 0))
        if trace is not None:
            trace.context = context
        if packing is not None:
            x = packing.pack(x)
        at = Places(cos, sin, mask, form, packing, prefix)
        for index, layer in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():
                x, decisions = checkpoint(layer, x, at, context, use_reentrant=False)
            else:
                x, decisions = layer(x, at, context)
            routers: Any = layer.routers
            # Outside of the layer: a checkpointed one runs twice.
            for name, decision in decisions.items():
                routers[name].observe(context, decision)
                if trace is not None:
                    trace.decisions[str(index) if name == "layer" else f"{index}.{name}"] = decision
        states = rms_norm(x, self.norm, self.eps)
        states = states if packing is None else packing.unpack(states)
        if prefix is not None and not prefix.read:
            prefix.states = states
        return states


class HostedDecoder(nn.Module):
    """Any other decoder, through its own `transformers` forward, with adapters in place of its linear layers."""

    def __init__(self, model: PreTrainedModel, adapter: AdapterConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.body: Any = model.base_model
        if adapter.is_routed:
            raise UserError(
                f"model.adapter.router: {type(model).__name__} runs through its own code, which takes no routing; "
                f"routed experts need one of the fused families: {', '.join(FUSED_FAMILIES)}"
            )
        if adapter.layers is not None:
            raise UserError(
                f"model.adapter.experts: {type(model).__name__} runs through its own code; ranks that differ by layer "
                f"need one of the fused families: {', '.join(FUSED_FAMILIES)}"
            )
        replaced: set[str] = set()
        for parent in list(self.body.modules()):
            for name, child in list(parent.named_children()):
                if name in adapter.targets and isinstance(child, nn.Linear):
                    setattr(parent, name, MoELoRALinear({name: child}, adapter, adapter.ranks(0)))
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

    @staticmethod
    def tokens_computed(batch: TokenBatch) -> int:
        """All positions: padding is left out in the fused decoder only."""
        return batch.input_ids.numel()

    def forward(
        self,
        batch: TokenBatch,
        *,
        causal: bool = True,
        context: RoutingContext | None = None,
        trace: RoutingTrace | None = None,
        marks: Marks | None = None,
    ) -> Tensor:
        """`[B, T] -> [B, T, d]`; there is one expert, and no `context` changes that."""
        if not causal:
            raise UserError(
                "model: bidirectional attention needs one of the fused families: " + ", ".join(FUSED_FAMILIES)
            )
        tokens = {"input_ids": batch.input_ids}
        if marks is not None:
            tokens = {"inputs_embeds": marks.put(self.body.get_input_embeddings()(batch.input_ids))}
        return self.body(
            **tokens,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state


def build_decoder(
    model: PreTrainedModel, adapter: AdapterConfig, *, checkpointing: bool = False
) -> FusedDecoder | HostedDecoder:
    """The fused decoder where the architecture is known and has no sliding window, the hosted one elsewhere."""
    config = model.config
    sliding = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])
    sliding = sliding or (config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None)
    gated = getattr(config, "hidden_act", None) == "silu"
    if config.model_type in FUSED_FAMILIES and gated and not sliding:
        return FusedDecoder(model, adapter, checkpointing=checkpointing)
    return HostedDecoder(model, adapter, checkpointing=checkpointing)
