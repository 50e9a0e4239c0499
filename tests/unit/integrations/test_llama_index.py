"""The LlamaIndex classes, inside LlamaIndex's own index, retriever and query engine."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Document, QueryBundle, VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import ValidationError

import tiny
from unimoer import UniMoER
from unimoer.integrations.llama_index import UniMoEREmbedding, UniMoERRerank
from unimoer.model.checkpoint import save_model

QUERY = "find my red kettle"
TEXTS = [document.content for document in tiny.dataset("kitchen").corpus.values()]
NODES = [TextNode(text=text, id_=str(place), metadata={"place": place}) for place, text in enumerate(TEXTS)]
READ = [node.get_content(MetadataMode.EMBED) for node in NODES]
PROMPTS = tiny.PROMPTS | {"query": "Query: {query}"}
ROUTED = {"rank": 4, "alpha": 8.0, "experts": {"one": 2, "two": 2}, "router": {"type": "softmax"}}


@pytest.fixture(scope="module", params=["one LoRA", "routed"])
def model(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    folder = tmp_path_factory.mktemp("llama") / "checkpoint"
    changes = {"adapter": ROUTED} if request.param == "routed" else {}
    save_model(tiny.build(base, noise=0.3, prompts=PROMPTS, **changes), folder)
    return UniMoER.load(folder, device="cpu")


def test_an_index_finds_what_the_model_finds(model: UniMoER) -> None:
    index = VectorStoreIndex(NODES, embed_model=UniMoEREmbedding(model=model))
    found = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    cosines = model.encode(READ, "document") @ model.encode([QUERY], "query")[0]
    best = np.argsort(-cosines, kind="stable")[:5]
    assert [node.node.metadata["place"] for node in found] == best.tolist()
    np.testing.assert_allclose([node.score for node in found], cosines[best], atol=1e-5)
    whole = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS], embed_model=UniMoEREmbedding(model=model)
    )
    plain = model.encode(TEXTS, "document") @ model.encode([QUERY], "query")[0]
    texts = [node.text for node in whole.as_retriever(similarity_top_k=5).retrieve(QUERY)]
    assert texts == [TEXTS[place] for place in np.argsort(-plain, kind="stable")[:5]]


def test_embeddings_are_those_of_the_model(model: UniMoER) -> None:
    embedding = UniMoEREmbedding(model=model)
    query, documents = model.encode([QUERY], "query")[0], model.encode(TEXTS, "document")
    np.testing.assert_allclose(embedding.get_query_embedding(QUERY), query, atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[0]), documents[0], atol=1e-5)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), documents, atol=1e-5)
    assert embedding.get_text_embedding_batch([]) == []
    np.testing.assert_allclose(asyncio.run(embedding.aget_query_embedding(QUERY)), query, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embedding.aget_text_embedding_batch(TEXTS)), documents, atol=1e-5)
    assert len(UniMoEREmbedding(model=model, dim=8).get_query_embedding(QUERY)) == 8


def test_what_a_retriever_has_found_is_put_in_order(model: UniMoER) -> None:
    nodes = [NodeWithScore(node=node, score=0.5) for node in NODES]
    found = UniMoERRerank(model=model, top_n=4).postprocess_nodes(nodes, query_str=QUERY)
    expected = model.rerank(QUERY, READ, 4)
    assert [node.node.metadata["place"] for node in found] == [one.index for one in expected]
    assert [node.score for node in found] == [one.score for one in expected]
    # What was given stays as it was.
    assert all(node.score == 0.5 for node in nodes)
    assert len(UniMoERRerank(model=model, top_n=None).postprocess_nodes(nodes, QueryBundle(QUERY))) == len(NODES)
    assert UniMoERRerank(model=model).postprocess_nodes([], query_str=QUERY) == []
    later = asyncio.run(UniMoERRerank(model=model, top_n=4).apostprocess_nodes(nodes, query_str=QUERY))
    assert later == found
    with pytest.raises(ValueError, match="UniMoERRerank: needs the query; give query_str or query_bundle"):
        UniMoERRerank(model=model).postprocess_nodes(nodes)
    with pytest.raises(ValidationError):
        UniMoERRerank(model=model, top_n=0)


def test_a_query_engine_reads_what_was_reranked(model: UniMoER) -> None:
    index = VectorStoreIndex(NODES, embed_model=UniMoEREmbedding(model=model))
    first = [node.text for node in index.as_retriever(similarity_top_k=10).retrieve(QUERY)]
    places = [TEXTS.index(text) for text in first]
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=10, node_postprocessors=[UniMoERRerank(model=model, top_n=2)]
    )
    sources = engine.query(QUERY).source_nodes
    expected = model.rerank(QUERY, [READ[place] for place in places], 2)
    assert [node.text for node in sources] == [first[one.index] for one in expected]
    np.testing.assert_allclose([node.score for node in sources], [one.score for one in expected], atol=1e-5)


def test_a_cache_of_another_models_vectors_is_not_read(model: UniMoER, base: Path, tmp_path: Path) -> None:
    save_model(tiny.build(base, noise=0.3, seed=5), tmp_path / "other")
    other = UniMoER.load(tmp_path / "other", device="cpu")
    cache = IngestionCache()
    for one in (model, other, model):
        pipeline = IngestionPipeline(transformations=[UniMoEREmbedding(model=one)], cache=cache)
        [node] = pipeline.run(nodes=NODES[:1])
        np.testing.assert_allclose(node.embedding, one.encode(READ[:1], "document")[0], atol=1e-5)
    assert UniMoEREmbedding(model=model, model_name="mine").model_name == "mine"


def test_without_llama_index_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "unimoer.integrations.llama_index")
    monkeypatch.setitem(sys.modules, "llama_index.core.schema", None)
    message = "LlamaIndex is not installed; pip install 'unimoer[llama-index]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        importlib.import_module("unimoer.integrations.llama_index")
