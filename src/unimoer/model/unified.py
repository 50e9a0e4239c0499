"""`UnifiedModel`: one frozen decoder with adapters, and a way out for each task."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.data.prompts import Prompter
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.backbone import load_backbone
from unimoer.model.decoder import build_decoder
from unimoer.model.heads import LinearHead, YesNoHead, pool
from unimoer.types import Task, TokenBatch


class UnifiedModel(nn.Module):
    """Embeds texts and scores query-document pairs through the same decoder; the one forward path of every arm."""

    def __init__(self, config: ModelConfig, device: torch.device, *, seed: int = 0) -> None:
        """Load the base and add a fresh adapter; `seed` alone decides the adapter's and the head's first values."""
        super().__init__()
        self.config = config
        base, tokenizer = load_backbone(config, device)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.prompter = Prompter(tokenizer, config.prompts)
        self.head = self._build_head(base, seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.decoder = build_decoder(base, config.adapter, checkpointing=config.gradient_checkpointing)
        self.eval()

    def _build_head(self, base: PreTrainedModel, seed: int) -> nn.Module:
        lm_head: Tensor = base.get_output_embeddings().weight
        if self.config.reranking.head == "linear":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return LinearHead(lm_head.shape[1], torch.device("cpu")).to(lm_head.device)
        ids = []
        for word in ("yes", "no"):
            tokens = self.tokenizer(word, add_special_tokens=False).input_ids
            if len(tokens) != 1:
                raise UserError(f"model.reranking.head: '{word}' is not one token of {self.config.base}; use 'linear'")
            ids += tokens
        return YesNoHead(lm_head, *ids)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _states(self, batch: TokenBatch, task: Task) -> Tensor:
        head = self.config.embedding if task is Task.EMBEDDING else self.config.reranking
        return pool(self.decoder(batch), batch.attention_mask, head.pooling)

    def embed(self, batch: TokenBatch) -> Tensor:
        """`[B, T] -> [B, d]`, float32, unit length."""
        return F.normalize(self._states(batch, Task.EMBEDDING), dim=-1)

    def score(self, batch: TokenBatch) -> Tensor:
        """`[B, T] -> [B]`, float32 logits: their sigmoid is the probability of relevance."""
        return self.head(self._states(batch, Task.RERANKING))

    def trainable(self, task: Task | None = None) -> dict[str, nn.Parameter]:
        """What is trained and saved, by name; with a task, without the head that the task never reaches."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not (task is Task.EMBEDDING and name.startswith("head."))
        }

    def frozen_weights(self) -> dict[int, list[nn.Parameter]]:
        """The frozen matrices under an adapter, by decoder layer: what the gradient probe differentiates."""
        layers: dict[int, list[nn.Parameter]] = {}
        for name, module in self.decoder.named_modules():
            if isinstance(module, MoELoRALinear) and module.a is not None:
                index = next((int(part) for part in name.split(".") if part.isdigit()), 0)
                layers.setdefault(index, []).append(module.weight)
        return layers

    def fingerprint(self) -> str:
        """Identity of the frozen base: 16 hex digits over samples of every frozen tensor, in any precision."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.decoder.named_parameters()):
            if parameter.requires_grad:
                continue
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // 512)].to(torch.bfloat16).float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]
