"""LlamaIndex: embeddings for an index, and a postprocessor that reranks what is found; extra `llama-index`.

    from unimoer import UniMoER
    from unimoer.integrations.llama_index import UniMoEREmbedding, UniMoERRerank

    model = UniMoER.load("smollm2-135m-search")
    index = VectorStoreIndex.from_documents(documents, embed_model=UniMoEREmbedding(model=model))
    found = index.as_retriever(similarity_top_k=20).retrieve(query)
    best = UniMoERRerank(model=model, top_n=3).postprocess_nodes(found, query_str=query)

One model in memory does both.
"""

from __future__ import annotations

from typing import Self

from unimoer.library import UniMoER
from unimoer.library.identity import identity

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, model_validator
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise ImportError("LlamaIndex is not installed; pip install 'unimoer[llama-index]', or llama-index-core") from error


class UniMoEREmbedding(BaseEmbedding):
    """Queries and texts by the checkpoint's own prompts; vectors have unit length, so cosine is the dot product.

    Async methods do the same work in the loop that calls them.
    """

    model: UniMoER = Field(exclude=True)
    dim: int | None = None
    """The first numbers of each vector, of a model that was trained for it (`matryoshka`); None: all."""

    @classmethod
    def class_name(cls) -> str:
        return "UniMoEREmbedding"

    @model_validator(mode="after")
    def _name_tells_models_apart(self) -> Self:
        """Caches of an ingestion pipeline know a model by its settings, of which the weights are none."""
        if self.model_name == "unknown":
            self.model_name = f"unimoer/{identity(self.model)}"
        return self

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self.model.encode([query], "query", dim=self.dim)[0].tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self.model.encode(texts, "document", dim=self.dim).tolist()
        return found

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._get_text_embeddings(texts)


class UniMoERRerank(BaseNodePostprocessor):
    """The best of a list of nodes, best first, with the head's score in place of the retriever's."""

    model: UniMoER = Field(exclude=True)
    top_n: int | None = Field(3, ge=1)
    """Nodes that are kept; None: all."""

    @classmethod
    def class_name(cls) -> str:
        return "UniMoERRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Equal scores keep the order that was given. A node is read as it was embedded, with its metadata.

        Raises:
            ValueError: there is no query.
        """
        if query_bundle is None:
            raise ValueError("UniMoERRerank: needs the query; give query_str or query_bundle")
        texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
        found = self.model.rerank(query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in found]
