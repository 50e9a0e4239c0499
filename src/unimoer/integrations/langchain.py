"""LangChain: embeddings for a vector store, and a compressor that reranks what is found; extra `langchain`.

    from unimoer import UniMoER
    from unimoer.integrations.langchain import UniMoEREmbeddings, UniMoERReranker

    model = UniMoER.load("smollm2-135m-search")
    store = InMemoryVectorStore.from_texts(texts, UniMoEREmbeddings(model))
    best = UniMoERReranker(model=model, top_n=3).compress_documents(store.similarity_search(query, k=20), query)

One model in memory does both.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict, Field

from unimoer.library import UniMoER

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ImportError("LangChain is not installed; pip install 'unimoer[langchain]', or langchain-core") from error

SCORE = "relevance_score"
"""Where a reranked document carries its score, as LangChain's other rerankers do."""


class UniMoEREmbeddings(Embeddings):
    """Queries and documents by the checkpoint's own prompts; vectors have unit length, so cosine is the dot product."""

    def __init__(self, model: UniMoER, *, dim: int | None = None) -> None:
        """`dim` keeps the first numbers of each vector, of a model that was trained for it (`matryoshka`)."""
        self.model, self.dim = model, dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self.model.encode(texts, "document", dim=self.dim).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        found: list[float] = self.model.encode([text], "query", dim=self.dim)[0].tolist()
        return found


class UniMoERReranker(BaseDocumentCompressor):
    """The best of a list of documents, best first, each a copy with its score in `metadata["relevance_score"]`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: UniMoER
    top_n: int | None = Field(3, ge=1)
    """Documents that are kept; None: all."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Equal scores keep the order that was given."""
        found = self.model.rerank(query, [document.page_content for document in documents], self.top_n)
        return [
            documents[one.index].model_copy(update={"metadata": {**documents[one.index].metadata, SCORE: one.score}})
            for one in found
        ]
