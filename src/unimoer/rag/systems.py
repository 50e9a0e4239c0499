"""The four systems, loaded: what each retrieves with, and who answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unimoer.config import RagConfig
from unimoer.config.rag import EndpointGeneratorConfig, System
from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.library.identity import identity
from unimoer.model.inference import Report
from unimoer.rag.generate import BaseGenerator, Generator, build_generator
from unimoer.rag.pipeline import Pipeline
from unimoer.rag.questions import Passages
from unimoer.rag.retrieve import Closed, Indexed, Retriever, Words
from unimoer.search import SearchIndex
from unimoer.types import Task


@dataclass
class Loaded:
    """A system in this process; of several sets of passages it holds one at a time."""

    config: RagConfig
    system: System
    device: torch.device
    generator: Generator
    reranker: UniMoER | None = None
    retriever: Retriever | None = None

    @classmethod
    def load(cls, config: RagConfig, system: System, device: torch.device) -> Loaded:
        """Generator, and the second of two models. An index brings the first one with it.

        Raises:
            UserError: a model cannot be loaded, or was not trained for what it is to do.
        """
        loaded = cls(config, system, device, build_generator(config.generator, device))
        if system == "two_models" and config.two_models is not None:
            loaded.reranker = _reranks(UniMoER.load(config.two_models.reranker, device=str(device)))
        return loaded

    def open(self, index: Path, passages: Passages, report: Report | None = None) -> Pipeline:
        """Ready to answer over these passages, which an index on disk holds already, unless there is a `report`: then
        it is made, or finished, first.
        """
        # Before another index brings another copy of its model.
        self.retriever = None
        retrieval = self.config.retrieval
        if self.system == "no_retrieval":
            self.retriever = Closed()
        elif self.system == "bm25_only":
            self.retriever = Words(dict(passages), retrieval)
        else:
            if report is None:
                found = SearchIndex.open(index, model=self.embedder_name, device=str(self.device))
            else:
                found = SearchIndex.create(index, self.embedder_name, device=str(self.device))
                found.add(passages, report=report)
            reranker = self.reranker or found.model
            self.retriever = Indexed(found, _reranks(reranker) if retrieval.rerank else None, retrieval)
        return Pipeline(self.retriever, self.generator, self.config.prompt)

    @property
    def embedder_name(self) -> str:
        two = self.config.two_models
        return two.embedder if self.system == "two_models" and two is not None else str(self.config.unified)

    def models(self) -> dict[str, str]:
        """Part -> its name and, of ours, its identity."""
        generator, two = self.config.generator, self.config.two_models
        if isinstance(generator, EndpointGeneratorConfig):
            found = {"generator": f"{generator.model} at {generator.url}"}
        else:
            found = {"generator": generator.base}
        if isinstance(self.retriever, Indexed):
            found["embedder"] = f"{self.embedder_name} ({identity(self.retriever.index.model)})"
            if self.retriever.reranker is not None:
                name = two.reranker if self.reranker is not None and two is not None else self.embedder_name
                found["reranker"] = f"{name} ({identity(self.retriever.reranker, Task.RERANKING)})"
        return found

    def modules(self) -> Iterator[nn.Module]:
        """Of everything that is loaded; one may come twice."""
        if isinstance(self.retriever, Indexed):
            yield self.retriever.index.model.model
            if self.retriever.reranker is not None:
                yield self.retriever.reranker.model
        if isinstance(self.generator, BaseGenerator):
            yield self.generator.model


def _reranks(model: UniMoER) -> UniMoER:
    if Task.RERANKING not in model.tasks:
        raise UserError(f"{model.checkpoint}: was not trained to rerank; set retrieval.rerank=0, or name another")
    return model
