"""The LangChain classes, inside LangChain's own vector store and against its own contracts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

import tiny
from unimoer import UniMoER
from unimoer.integrations.langchain import SCORE, UniMoEREmbeddings, UniMoERReranker
from unimoer.model.checkpoint import save_model

QUERY = "find my red kettle"
TEXTS = [document.content for document in tiny.dataset("kitchen").corpus.values()]


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    folder = tmp_path_factory.mktemp("langchain") / "checkpoint"
    save_model(tiny.build(base, noise=0.3), folder)
    return UniMoER.load(folder, device="cpu")


def test_a_vector_store_finds_what_the_model_finds(model: UniMoER) -> None:
    embeddings = UniMoEREmbeddings(model)
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    found = [document.page_content for document in store.similarity_search(QUERY, k=5)]
    cosines = model.encode(TEXTS, "document") @ model.encode([QUERY], "query")[0]
    assert found == [TEXTS[place] for place in np.argsort(-cosines, kind="stable")[:5]]
    assert asyncio.run(embeddings.aembed_query(QUERY)) == embeddings.embed_query(QUERY)
    assert embeddings.embed_documents([]) == []
    assert [len(vector) for vector in UniMoEREmbeddings(model, dim=8).embed_documents(["a", "b"])] == [8, 8]


def test_what_a_retriever_has_found_is_put_in_order(model: UniMoER) -> None:
    documents = [Document(text, id=str(place), metadata={"place": place}) for place, text in enumerate(TEXTS)]
    found = UniMoERReranker(model=model, top_n=4).compress_documents(documents, QUERY)
    expected = model.rerank(QUERY, TEXTS, 4)
    assert [document.metadata["place"] for document in found] == [one.index for one in expected]
    assert [document.metadata[SCORE] for document in found] == [one.score for one in expected]
    assert [document.id for document in found] == [str(one.index) for one in expected]
    # What was given stays as it was.
    assert all(SCORE not in document.metadata for document in documents)
    assert len(UniMoERReranker(model=model, top_n=None).compress_documents(documents, QUERY)) == len(TEXTS)
    assert UniMoERReranker(model=model).compress_documents([], QUERY) == []
    later = asyncio.run(UniMoERReranker(model=model, top_n=4).acompress_documents(documents, QUERY))
    assert later == found
    with pytest.raises(ValidationError):
        UniMoERReranker(model=model, top_n=0)


def test_without_langchain_the_extra_is_named() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import unimoer.integrations.langchain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LangChain is not installed; pip install 'unimoer[langchain]'" in done.stderr
