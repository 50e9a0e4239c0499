"""Who writes the answer: a frozen decoder itself, or a server (`endpoint.py`). A message in, a text out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria

from unimoer.config import ModelConfig
from unimoer.config.rag import BaseGeneratorConfig, EndpointGeneratorConfig, GeneratorConfig
from unimoer.errors import UserError
from unimoer.model.backbone import load_backbone
from unimoer.rag.endpoint import EndpointGenerator


class Generator(Protocol):
    local: bool
    """Whether it runs in this process: its first call is slow, and costs nobody money."""

    def answer(self, message: str) -> str:
        """What is said to a message.

        Raises:
            UserError: nothing is, and the user can do something about it.
        """


class BaseGenerator:
    """The frozen base as it was published, without any adapter: greedy, in its own chat template where it has one.

    Control tokens inside a message are removed, so that a passage cannot end the turn it stands in. Generation ends at
    the end token, after the first line that says something, or at `new_tokens`.
    """

    local = True

    def __init__(self, config: BaseGeneratorConfig, device: torch.device) -> None:
        """Raises: UserError where the base cannot be loaded."""
        self.config = config
        base = ModelConfig(base=config.base, revision=config.revision, dtype=config.dtype)
        loaded, self.tokenizer = load_backbone(base, device)
        self.model: Any = loaded.eval()
        self._control = [token for token in self.tokenizer.get_added_vocab() if token.strip()]
        own = self.model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        # Made anew: a base's own settings may ask for sampling.
        self._settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=config.new_tokens,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    @torch.inference_mode()
    def answer(self, message: str) -> str:
        ids = torch.tensor([self._ids(self._plain(message))], device=self.model.device)
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and ids.shape[1] + self.config.new_tokens > most:
            raise UserError(
                f"generator: a prompt of {ids.shape[1]} tokens and {self.config.new_tokens} new ones do not fit into "
                f"the {most} of {self.config.base}; lower retrieval.passages or prompt.passage_words"
            )
        stop = FirstLine(self.tokenizer, ids.shape[1])
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=self._settings, stopping_criteria=[stop]
        )
        return _said(self.tokenizer, found, ids.shape[1])

    def _ids(self, message: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            plain: list[int] = self.tokenizer(message).input_ids
            return plain
        turns = [{"role": "user", "content": message}]
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        # The template has put in what else a tokenizer would add in front.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _plain(self, message: str) -> str:
        # Again, since removing one may make another of what stood around it.
        while found := next((token for token in self._control if token in message), None):
            message = message.replace(found, "")
        return message


class FirstLine(StoppingCriteria):
    """Ends when something has been said and its line has ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int) -> None:
        self._tokenizer, self._start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        ended = "\n" in _said(self._tokenizer, input_ids, self._start).lstrip()
        return torch.full((len(input_ids),), ended, device=input_ids.device)


def _said(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, start: int) -> str:
    """The one text of a batch, from a token on."""
    return str(tokenizer.decode(ids[0, start:].tolist(), skip_special_tokens=True))


def build_generator(config: GeneratorConfig, device: torch.device) -> Generator:
    """Raises: UserError where a base cannot be loaded, or the variable of a key is not set."""
    if isinstance(config, EndpointGeneratorConfig):
        return EndpointGenerator(config)
    return BaseGenerator(config, device)
