"""`UnifiedModel`: one frozen decoder with adapters, and a way out for each task."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unimoer.config import ModelConfig, parse_model
from unimoer.config.router import LearnedRouterConfig
from unimoer.data.prompts import Prompter
from unimoer.errors import UserError, did_you_mean
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.backbone import load_backbone
from unimoer.model.decoder import build_decoder
from unimoer.model.head_table import build_head
from unimoer.model.heads import PairHead, pool
from unimoer.model.listwise import ListwiseHead, Marks, check_length
from unimoer.model.pilots import Pilots
from unimoer.model.routers import Router, Standardiser
from unimoer.model.routing import RoutingContext, RoutingTrace
from unimoer.types import Task, TokenBatch


class UnifiedModel(nn.Module):
    """Embeds texts and scores query-document pairs through the same decoder; the one forward path of every arm."""

    def __init__(self, config: ModelConfig, device: torch.device, *, seed: int = 0) -> None:
        """Load the base and add a fresh adapter; `seed` alone decides the adapter's and the head's first values."""
        super().__init__()
        self.config = config
        base, tokenizer = load_backbone(config, device)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.prompter = Prompter(tokenizer, config.prompts, base.config.model_type)
        if config.reranking.kind.reads_lists:
            check_length(self.prompter, config, getattr(base.config, "max_position_embeddings", None))
        self.head = build_head(base, tokenizer, config, seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.decoder = build_decoder(base, config.adapter, checkpointing=config.gradient_checkpointing)
        router = config.adapter.router
        self.pilots = Pilots().to(device) if router is not None and router.uses_pilots else None
        routers = {name: parameter for name, parameter in self.named_parameters() if ".routers." in name}
        # By name, for good: an expert that is frozen later does not become part of the base.
        self._base = frozenset(
            name for name, parameter in self.named_parameters() if not parameter.requires_grad and name not in routers
        )
        self.router_start = {name: parameter.detach().cpu().clone() for name, parameter in routers.items()}
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _states(
        self,
        batch: TokenBatch,
        task: Task,
        trace: RoutingTrace | None,
        expert: str | None = None,
        marks: Marks | None = None,
    ) -> Tensor:
        """Pooled, `[B, d]`, or at the marks, `[B, M, d]`."""
        states = self._decode(batch, task, trace, expert, marks)
        pooling = (self.config.embedding if task is Task.EMBEDDING else self.config.reranking).pooling
        return pool(states, batch.attention_mask, pooling) if marks is None else marks.read(states)

    def _decode(
        self,
        batch: TokenBatch,
        task: Task,
        trace: RoutingTrace | None,
        expert: str | None = None,
        marks: Marks | None = None,
    ) -> Tensor:
        """The states of all tokens, `[B, T, d]`."""
        settings = self.config.embedding if task is Task.EMBEDDING else self.config.reranking
        context = RoutingContext(task, batch.attention_mask, self._choose(batch, expert))
        states: Tensor = self.decoder(
            batch, causal=settings.attention == "causal", context=context, trace=trace, marks=marks
        )
        return states

    def _choose(self, batch: TokenBatch, expert: str | None) -> Tensor | None:
        """The expert of each row: as told, or by its nearest pilot; None where the routers decide, and in training."""
        if expert is not None:
            place = list(self.config.adapter.experts or {}).index(expert)
            return torch.full((len(batch.input_ids),), place, device=self.device)
        if self.pilots is None or self.training or not len(self.pilots.owners):
            return None
        return self.pilots.choose(self.base_states(batch))

    def base_states(self, batch: TokenBatch) -> Tensor:
        """`[B, T] -> [B, d]`: mean state of the frozen base without any expert, float32, unit length."""
        with torch.no_grad():
            states = self.decoder(batch, context=RoutingContext(Task.EMBEDDING, batch.attention_mask, bare=True))
            return F.normalize(pool(states, batch.attention_mask, "mean"), dim=-1)

    def embed(self, batch: TokenBatch, trace: RoutingTrace | None = None, expert: str | None = None) -> Tensor:
        """`[B, T] -> [B, d]`, float32, unit length.

        `trace` is told every routing decision; `expert` overrules a router that chooses by similarity.
        """
        return F.normalize(self._states(batch, Task.EMBEDDING, trace, expert), dim=-1)

    def score(self, batch: TokenBatch, trace: RoutingTrace | None = None, expert: str | None = None) -> Tensor:
        """`[B, T] -> [B]`, float32 logits: their sigmoid is the probability of relevance.

        Raises:
            UserError: the head reads lists, not pairs.
        """
        head = self.config.reranking
        if head.kind.reads_lists:
            raise UserError(
                f"model.reranking.head: '{head.head}' scores a query's candidates together, not single pairs"
            )
        assert isinstance(self.head, PairHead)
        return self.head.read(self._decode(batch, Task.RERANKING, trace, expert), batch, head.pooling)

    def list_vectors(self, prompts: TokenBatch, marks: Tensor, trace: RoutingTrace | None = None) -> Tensor:
        """`[B, T]`, `[B, K + 2]` -> `[B, K + 2, p]`, unit length: the query, K documents, the query that has read them.

        Of head `listwise` only. A document's score is its product with the last.
        """
        assert isinstance(self.head, ListwiseHead)
        vectors: Tensor = self.head(self._states(prompts, Task.RERANKING, trace, marks=self.head.place(marks)))
        return vectors

    def embed_feedback(self, prompts: TokenBatch, trace: RoutingTrace | None = None) -> Tensor:
        """`[B, T] -> [B, d]`, float32, unit length: queries that have read candidates, as head `cosine` has them."""
        return F.normalize(self._states(prompts, Task.RERANKING, trace), dim=-1)

    def router_moved(self) -> float | None:
        """How far the routers' parameters are from where their seed put them, over the size of that start.

        None without any, and for a model that was loaded. That a router was to be trained does not mean that it moved.
        """
        now = dict(self.named_parameters())
        start = {name: value for name, value in self.router_start.items() if now[name].shape == value.shape}
        if not start:
            return None
        distance = sum(float((now[name].detach().cpu() - value).square().sum()) for name, value in start.items())
        return float((distance / sum(float(value.square().sum()) for value in start.values())) ** 0.5)

    def trainable(self, task: Task | None = None) -> dict[str, nn.Parameter]:
        """What is trained, by name; with a task, without the head that the task never reaches."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not (task is Task.EMBEDDING and name.startswith("head."))
        }

    def state(self) -> dict[str, Tensor]:
        """What is saved, by name: everything but the base, whether it is being trained or not."""
        buffers = {
            f"{path}.{name}": buffer
            for path, module in self.named_modules()
            if isinstance(module, Router | Standardiser | Pilots)
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        return {name: p for name, p in self.named_parameters() if name not in self._base} | buffers

    def adapters(self) -> dict[str, MoELoRALinear]:
        """The adapted projections by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MoELoRALinear)}

    def freeze_expert(self, expert: str) -> None:
        """Train an expert no further; it stays in use."""
        for adapter in self._having(expert):
            adapter.a[expert].requires_grad_(False)
            adapter.b[expert].requires_grad_(False)

    def grow_expert(self, expert: str, ranks: int) -> None:
        """Use the first `ranks` of the ranks that an expert was built with; see `MoELoRALinear.set_active`.

        A layer in which it has fewer uses all of them.
        """
        adapters = self._having(expert)
        most = max(adapter.ranks[expert] for adapter in adapters)
        if not 0 <= ranks <= most:
            raise UserError(f"expert '{expert}' was built with {most} ranks, not {ranks}")
        for adapter in adapters:
            adapter.set_active(expert, min(ranks, adapter.ranks[expert]))

    @property
    def active_ranks(self) -> dict[str, int]:
        """What `grow_expert` was told, of the experts that do not use all their ranks."""
        found: dict[str, int] = {}
        for adapter in self.adapters().values():
            for expert, rank in adapter.ranks.items():
                if adapter.active[expert] < rank:
                    found[expert] = max(adapter.active[expert], found.get(expert, 0))
        return found

    def remove_expert(self, expert: str) -> None:
        """Take an expert out for good, and its unit out of the routers; weights are normalised over those left.

        A learned router keeps its gain: without an expert that it does not use, the model is what it was. To be called
        before an optimizer is built.

        Raises:
            UserError: there is no such expert, or the router cannot do without it.
        """
        adapters, old = self._having(expert), self.config.adapter
        content = old.model_dump(mode="json")
        content["experts"] = {name: rank for name, rank in (old.experts or {}).items() if name != expert}
        if not content["experts"]:
            raise UserError(f"expert '{expert}' cannot be removed: it is the last one")
        owners = [old.owners(layer) for layer in range(old.layers or 1)]
        weighed = old.router is not None and not old.router.named_experts
        if weighed and len({(len(units), *dict.fromkeys(units)) for units in owners}) > 1:
            raise UserError(f"expert '{expert}' cannot be removed: the layers do not weigh the same experts")
        learned = isinstance(old.router, LearnedRouterConfig)
        if learned:
            content["gain"] = old.gain or len(owners[0])
            # How routers began is in their weights; the experts that it needed may go.
            content["router"]["task_prior"] = 0.0
        where = f"expert '{expert}' cannot be removed"
        self.config = parse_model(self.config.model_dump(mode="json") | {"adapter": content}, where)
        for adapter in adapters:
            adapter.remove(expert)
            if learned:
                adapter.gain = self.config.adapter.gain
        for name, module in self.named_modules():
            if isinstance(module, Router):
                units = owners[_layer(name) if old.layers else 0]
                kept = [place for place, owner in enumerate(units) if owner != expert]
                module.remove(expert, torch.tensor(kept, device=self.device))
        if self.pilots is not None:
            self.pilots.remove(list(old.experts or {}).index(expert))

    def _having(self, expert: str) -> list[MoELoRALinear]:
        """The adapters that have an expert.

        Raises:
            UserError: none has.
        """
        found = [adapter for adapter in self.adapters().values() if expert in adapter.ranks]
        if not found:
            names = sorted({name for adapter in self.adapters().values() for name in adapter.ranks})
            raise UserError(f"no expert '{expert}'{did_you_mean(expert, names)}; there are {', '.join(names)}")
        return found

    def for_inference(self) -> UnifiedModel:
        """Give up training for memory and speed: one LoRA is merged, experts are kept in the base's precision.

        Outputs differ by that rounding, so a study evaluates without it. Returns the model itself.
        """
        for adapter in self.adapters().values():
            if self.config.adapter.is_routed:
                adapter.stack()
            else:
                adapter.merge()
        return self.eval()

    def after_step(self) -> None:
        """To be called after every optimizer step: routers that balance without a loss adjust themselves."""
        for module in self.modules():
            if isinstance(module, Router):
                module.after_step()

    def frozen_weights(self) -> dict[int, list[nn.Parameter]]:
        """The frozen matrices under an adapter, by decoder layer: what the gradient probe differentiates."""
        layers: dict[int, list[nn.Parameter]] = {}
        for name, module in self.decoder.named_modules():
            if isinstance(module, MoELoRALinear) and module.targets:
                layers.setdefault(_layer(name), []).append(module.weight)
        return layers

    def fingerprint(self) -> str:
        """Identity of the frozen base: 16 hex digits over samples of every frozen tensor, in any precision."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.decoder.named_parameters()):
            if f"decoder.{name}" not in self._base:
                continue
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // 512)].to(torch.bfloat16).float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def _layer(name: str) -> int:
    """The decoder layer that a module of this name is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
