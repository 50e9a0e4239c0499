"""sentence-transformers: one checkpoint as `SentenceTransformer` and `CrossEncoder`; extra `sentence-transformers`.

    from unimoer import UniMoER
    from unimoer.integrations.sentence_transformers import cross_encoder, sentence_transformer

    model = UniMoER.load("smollm2-135m-search")
    vectors = sentence_transformer(model).encode_document(documents)
    ranked = cross_encoder(model).rank(query, documents, top_k=3)

Numbers are those of `UniMoER.encode` and `UniMoER.score`, and both share the one model in memory. What `UniMoER.save`
wrote opens by its path too: `SentenceTransformer("my-model", trust_remote_code=True)` and
`CrossEncoder("my-model/cross-encoder", trust_remote_code=True)`. sentence-transformers asks for the flag because the
classes named there, those below, are none of its own; there is no code in the folder.

For inference: the weights are no parameters of these modules, so nothing here can train them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch

from unimoer.data.collate import pad
from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.library.sentence_files import CONFIG, MODULES, sentence_prompts
from unimoer.types import TokenBatch

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "sentence-transformers is not installed; pip install 'unimoer[sentence-transformers]', or sentence-transformers"
    ) from error


def sentence_transformer(model: UniMoER) -> SentenceTransformer:
    """The model's embedding side.

    Raises:
        UserError: it was not trained to embed.
    """
    return SentenceTransformer(
        modules=[UniMoEREmbedder(model)],
        device=str(model.model.device),
        prompts=sentence_prompts(model.model.config.prompts),
        similarity_fn_name="cosine",
    )


def cross_encoder(model: UniMoER) -> CrossEncoder:
    """The model's reranking side; scores are the head's own, without a sigmoid.

    Raises:
        UserError: it was not trained to rerank, or its head reads a query with all its candidates.
    """
    return CrossEncoder(
        modules=[UniMoERScorer(model)], device=str(model.model.device), activation_fn=torch.nn.Identity()
    )


class UniMoERModule(InputModule):
    """What both sides share. Texts become prompts here, so nothing else may cut them or put text before them."""

    def __init__(self, model: UniMoER) -> None:
        super().__init__()
        # What `encode` and `predict` pass on.
        self.forward_kwargs = {"instruction"}
        self.unimoer = model
        self.tokenizer = model.model.tokenizer
        self.register_buffer("place", torch.empty(0, device=model.model.device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """A move to another device loads the checkpoint again, in that device's own precision; a cast does nothing."""
        super()._apply(fn, recurse)
        device = self.get_buffer("place").device
        if device != self.unimoer.model.device:
            self.unimoer = UniMoER.load(self.unimoer.checkpoint, device=str(device))
        return self

    @property
    def max_seq_length(self) -> int:
        """Tokens of a document; a query has a limit of its own. Both are the checkpoint's and cannot be set."""
        return self.unimoer.model.config.prompts.max_document_tokens

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Self:
        """Called by sentence-transformers.

        Raises:
            UserError: there is no checkpoint, it was trained for the other task, or an option has nothing to go to.
        """
        options = [name for name in ("model_kwargs", "processor_kwargs", "config_kwargs") if kwargs.get(name)]
        if options or backend != "torch":
            given = options[0] if options else f"backend '{backend}'"
            raise UserError(f"{model_name_or_path}: {given} is for models of transformers; a UniMoER has none inside")
        found = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        folder = Path(found or model_name_or_path)
        return cls(UniMoER.load(folder if (folder / "unimoer.json").exists() else folder.parent))

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """All that `UniMoER.save` writes; sentence-transformers adds its own two files and the card."""
        with TemporaryDirectory() as temporary:
            saved = self.unimoer.save(Path(temporary) / "saved")
            for name in (MODULES, CONFIG):
                (saved / name).unlink()
            shutil.copytree(saved, output_path, dirs_exist_ok=True)

    def _features(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        side, pad_id = self.unimoer.model.config.padding, self.unimoer.model.tokenizer.pad_token_id
        batch = pad(ids, pad_id=pad_id, padding=side, multiple=16)
        return {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}


class UniMoEREmbedder(UniMoERModule):
    """Texts -> `sentence_embedding`, `[B, d]` float32 of unit length. `instruction=` replaces the checkpoint's."""

    def __init__(self, model: UniMoER) -> None:
        super().__init__(model)
        # Refuses a model that was not trained to embed.
        model.encode([], "document")

    def get_embedding_dimension(self) -> int:
        return self.unimoer.dimension

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """A prompt is one of the two templates, which says what the texts are; without any, they are documents.

        Raises:
            ValueError: another prompt, another task than "query" and "document", or no texts.
        """
        prompter = self.unimoer.model.prompter
        query, document = sentence_prompts(prompter.config).values()
        ways = {query: prompter.queries, document: prompter.documents}
        told = {"query": query, "document": document, None: document}.get(kwargs.get("task"))
        wanted = prompt or told
        if wanted not in ways:
            raise ValueError(
                f"prompt {prompt!r}, task {kwargs.get('task')!r}: texts get the checkpoint's own prompts; use "
                "encode_query, encode_document, or instruction= for another instruction"
            )
        return self._features(ways[wanted](_texts(inputs), kwargs.get("instruction")))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["sentence_embedding"] = self.unimoer.model.embed(_batch(features))
        return features


class UniMoERScorer(UniMoERModule):
    """Pairs of query and document -> `scores`, `[B]` float32: logits or cosines of the checkpoint's head."""

    def __init__(self, model: UniMoER) -> None:
        super().__init__(model)
        # Refuses a model that was not trained to rerank, and a head that reads lists.
        model.score([])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Raises: ValueError for a prompt, and for what is no pair of texts."""
        if prompt:
            raise ValueError(f"prompt {prompt!r}: pairs get the checkpoint's own prompt; use instruction=")
        if any(isinstance(pair, str) or len(pair) != 2 for pair in inputs):
            raise ValueError("inputs: not pairs of query and document")
        queries, documents = _texts([pair[0] for pair in inputs]), _texts([pair[1] for pair in inputs])
        return self._features(self.unimoer.model.prompter.pairs(queries, documents, kwargs.get("instruction")))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["scores"] = self.unimoer.model.score(_batch(features))
        return features


def _batch(features: dict[str, Any]) -> TokenBatch:
    return TokenBatch(features["input_ids"], features["attention_mask"], features["position_ids"])


def _texts(inputs: Sequence[Any]) -> list[str]:
    """Not a TypeError, for which sentence-transformers would try again without the prompt."""
    for text in inputs:
        if not isinstance(text, str):
            raise ValueError(f"inputs: {type(text).__name__}, not a text")
    return list(inputs)
