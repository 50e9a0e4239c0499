"""MTEB: both tasks of one model under its evaluation; extra `mteb`.

    import mteb
    from unimoer import UniMoER
    from unimoer.integrations.mteb import MTEBEmbedder, MTEBReranker

    model = UniMoER.load("smollm2-135m-search")
    mteb.evaluate(MTEBEmbedder(model), task, prediction_folder="first")
    mteb.evaluate(MTEBReranker(model), task.convert_to_reranking("first", top_k=50))

Two objects, because MTEB takes one that can do both for an embedder and never asks it for a score. A task that was
converted to reranking keeps its name, and MTEB keeps results by the names of task and model and the model's revision:
here each side has a revision of its own, a hash of all that decides about its numbers, so no result is taken for
another's.

Title and body are put together as everywhere in this package, by a line break. A task's instruction takes the place of
the checkpoint's where the checkpoint's prompt has a place for one (`{instruction}`); a prompt without it was trained
without, and stays as it is. A task's only instruction is for its queries; documents get one where it has one for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimoer.library import UniMoER
from unimoer.library.identity import identity
from unimoer.library.model import Kind
from unimoer.types import Document, Task

try:
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.similarity_functions import dot_score, pairwise_dot_score
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError("MTEB is not installed; pip install 'unimoer[mteb]', or mteb") from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput
    from torch.utils.data import DataLoader


class MTEBEmbedder:
    """Vectors for any task of MTEB. What is no query is embedded as a document, as in tasks that know no queries."""

    def __init__(self, model: UniMoER, *, name: str = "unimoer/embedder") -> None:
        """`name` is what MTEB calls it, `organisation/model`.

        Raises:
            UserError: the model was not trained to embed.
        """
        self.model, self.mteb_model_meta = model, _meta(model, name, Task.EMBEDDING)
        # Refuses a model that was not trained to embed.
        model.encode([], "document")

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """N inputs -> `[N, d]`, unit length. Batch sizes of MTEB are not used: batches here have a budget of tokens."""
        kind: Kind = "query" if prompt_type == PromptType.query else "document"
        instruction = _instruction(getattr(self.model.model.config.prompts, kind), task_metadata, kind)
        return self.model.encode(list(_texts(inputs)), kind, instruction=instruction)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> torch.Tensor:
        """`[N, d]`, `[M, d]` -> `[N, M]` cosines."""
        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """`[N, d]`, `[N, d]` -> `[N]` cosines."""
        return pairwise_dot_score(embeddings1, embeddings2)


class MTEBReranker:
    """Scores for reranking tasks of MTEB, and for retrieval tasks that were converted to them.

    A head that reads a query with all its candidates gets the candidates of one query as MTEB gives them, in one row
    and in the order of the first stage.
    """

    def __init__(self, model: UniMoER, *, name: str = "unimoer/reranker") -> None:
        """`name` is what MTEB calls it, `organisation/model`.

        Raises:
            UserError: the model was not trained to rerank.
        """
        self.model, self.mteb_model_meta = model, _meta(model, name, Task.RERANKING)
        # Refuses a model that was not trained to rerank.
        model.rerank("", [])

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """N queries, with repetition, and N documents -> `[N]` scores, in their order."""
        config = self.model.model.config
        lists = config.reranking.kind.reads_lists
        template = config.prompts.candidates if lists else config.prompts.pair
        instruction = _instruction(template, task_metadata, "query")
        queries, documents = list(_texts(inputs1)), list(_texts(inputs2))
        if not lists:
            return self.model.score(list(zip(queries, documents, strict=True)), instruction=instruction)
        keys = [key for batch in inputs1 for key in batch["id"]]
        scores: list[float] = []
        for _, group in groupby(range(len(keys)), key=keys.__getitem__):
            places = list(group)
            found = self.model.rerank(
                queries[places[0]], [documents[place] for place in places], instruction=instruction
            )
            scores += [one.score for one in sorted(found)]
        return np.array(scores, np.float32)


def _meta(model: UniMoER, name: str, task: Task) -> ModelMeta:
    """What MTEB keeps results by, and how it compares vectors."""
    embeds, prompts = task is Task.EMBEDDING, model.model.config.prompts
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": identity(model, task),
            "model_type": ["dense"] if embeds else ["cross-encoder"],
            "similarity_fn_name": ScoringFunction.COSINE if embeds else None,
            "embed_dim": model.dimension if embeds else None,
            "use_instructions": "{instruction}" in (prompts.query if embeds else prompts.pair),
            "framework": ["PyTorch"],
        }
    )


def _texts(inputs: DataLoader[BatchedInput]) -> Iterator[str]:
    """Of queries and plain texts `text`; of documents title and body, which MTEB's own `text` joins by a space."""
    for batch in inputs:
        if "body" in batch:
            titles = batch.get("title", [""] * len(batch["body"]))
            yield from (Document(body, title).content for body, title in zip(batch["body"], titles, strict=True))
        else:
            yield from batch["text"]


def _instruction(template: str, task: TaskMetadata, kind: Kind) -> str | None:
    """The task's, for a prompt with a place for it; None leaves the checkpoint's own."""
    prompt = task.prompt if isinstance(task.prompt, dict) else {"query": task.prompt}
    return (prompt.get(kind) or None) if "{instruction}" in template else None
