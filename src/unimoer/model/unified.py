"""`UnifiedModel`: one frozen decoder with adapters, which embeds texts and scores pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.data.prompts import Prompter
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.backbone import load_backbone
from unimoer.model.decoder import FusedDecoder, build_decoder
from unimoer.model.head_table import build_head
from unimoer.model.heads import PairHead, pool
from unimoer.model.listwise import ListwiseHead, Marks, check_length
from unimoer.model.pilots import Pilots
from unimoer.model.prefix import Prefix
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
        self.base_names = frozenset(
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
        prefix: Prefix | None = None,
    ) -> Tensor:
        """The states of all tokens, `[B, T, d]`."""
        settings = self.config.embedding if task is Task.EMBEDDING else self.config.reranking
        context = RoutingContext(task, batch.attention_mask, self._choose(batch, expert), prefix=prefix)
        shared = {} if prefix is None else {"prefix": prefix}
        states: Tensor = self.decoder(
            batch, causal=settings.attention == "causal", context=context, trace=trace, marks=marks, **shared
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
        """`[B, T] -> [B]`, float32 logits. Their order counts; the sigmoid is a probability only after loss `bce`.

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

    @property
    def reads_apart(self) -> str:
        """Why a query cannot be computed once for all its documents; empty where it can."""
        router = self.config.adapter.router
        if self.config.reranking.kind.reads_lists:
            return "the head reads a query with all its documents at once"
        if self.config.reranking.attention != "causal":
            return "attention is bidirectional: the query's states depend on the document"
        if not isinstance(self.decoder, FusedDecoder):
            return "the base runs through its own code"
        if router is not None and not router.causal:
            return "its routers decide by whole texts"
        return ""

    def read_prefix(self, ids: Sequence[int]) -> Prefix:
        """What prompts of pairs begin with, for `score_after`; only where `reads_apart` is empty."""
        row = torch.tensor([list(ids)], device=self.device)
        prefix = Prefix(row)
        batch = TokenBatch(row, torch.ones_like(row), torch.arange(row.shape[1], device=self.device)[None])
        self._decode(batch, Task.RERANKING, None, prefix=prefix)
        return prefix

    def score_after(self, prefix: Prefix, rest: TokenBatch) -> Tensor:
        """`score` of prompts `[B, P + T]` that begin alike, from the rest of each, `[B, T] -> [B]`."""
        assert isinstance(self.head, PairHead) and prefix.states is not None
        states = self._decode(rest, Task.RERANKING, None, prefix=prefix)
        rows = len(rest.input_ids)
        ids = torch.cat([prefix.ids.expand(rows, -1), rest.input_ids], 1)
        mask = F.pad(rest.attention_mask, (prefix.length, 0), value=1)
        whole = TokenBatch(ids, mask, rest.position_ids)
        return self.head.read(
            torch.cat([prefix.states.expand(rows, -1, -1), states], 1), whole, self.config.reranking.pooling
        )

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
        return {name: p for name, p in self.named_parameters() if name not in self.base_names} | buffers

    def adapters(self) -> dict[str, MoELoRALinear]:
        """The adapted projections by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MoELoRALinear)}

    def for_inference(self) -> UnifiedModel:
        """Give up training for memory and speed: one LoRA is merged, experts are kept in the base's precision.

        Where the task alone decides about experts, those of embedding are merged: its requests come one by one, and
        wait for it. Outputs differ by that rounding, so a study evaluates without it. Returns the model itself.
        """
        router = self.config.adapter.router
        merged: tuple[str, ...] = ()
        if router is not None and router.mergeable and router.told_task:
            merged = tuple(name for name in router.named_experts if name != Task.RERANKING)
        for module in self.modules():
            if isinstance(module, Router):
                module.serve()
        for adapter in self.adapters().values():
            if self.config.adapter.is_routed:
                adapter.stack(merged)
            else:
                adapter.merge()
            adapter.lay_out()
        return self.eval()

    def after_step(self) -> None:
        """To be called after every optimizer step: routers that balance without a loss adjust themselves."""
        for module in self.modules():
            if isinstance(module, Router):
                module.after_step()
