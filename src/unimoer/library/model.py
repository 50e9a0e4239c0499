"""`UniMoER`: both stages of search behind one object, with the checkpoint's own prompts, pooling and limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from unimoer.errors import UserError, did_you_mean
from unimoer.library.portable import save_portable
from unimoer.model.backbone import read_architecture, resolve_device
from unimoer.model.checkpoint import load_model, read_description, verify_golden
from unimoer.model.inference import Report, encode, usual_budget
from unimoer.model.scoring import filled, score_candidates, with_blank
from unimoer.model.unified import UnifiedModel
from unimoer.runs.folder import checkpoint_folder, trained_tasks
from unimoer.types import Task

Kind = Literal["query", "document"]


class Ranked(NamedTuple):
    """One document of a reranked list."""

    index: int  # type: ignore[assignment]  # tuples have a method of that name
    """Its place in the list that was given."""
    score: float
    document: str


class UniMoER:
    """One model that embeds texts and scores query-document pairs.

        model = UniMoER.load("runs/mine")
        vectors = model.encode(documents, "document")           # [n, d], unit length: cosine is the dot product
        best = np.argsort(-(vectors @ model.encode([query], "query")[0]))[:50]
        for index, score, text in model.rerank(query, [documents[i] for i in best], top_k=10): ...

    Texts are cut to the checkpoint's own numbers of tokens, and control tokens in them are removed. A text's vector or
    score depends on the texts beside it only by rounding.
    """

    def __init__(self, model: UnifiedModel, checkpoint: Path, tasks: Sequence[Task]) -> None:
        """Use `load`. `model` is made ready for inference; `tasks` are those it was trained for."""
        self.model = model.for_inference()
        self.checkpoint = checkpoint
        self.tasks = tuple(tasks)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", verify: bool = True) -> Self:
        """From a run folder, a checkpoint, what `save` wrote, or a model of this package by its name.

        One LoRA is merged into the weights. `verify` computes the golden outputs again, before that and after.

        Raises:
            UserError: there is no finished checkpoint, its base is missing or another, or golden outputs differ.
        """
        checkpoint = checkpoint_folder(Path(folder).expanduser())
        model = load_model(checkpoint, resolve_device(device), verify=verify)
        loaded = cls(model, checkpoint, trained_tasks(checkpoint))
        if verify:
            verify_golden(loaded.model, read_description(checkpoint)["golden"], checkpoint, served=True)
        return loaded

    def save(
        self,
        folder: str | Path,
        *,
        base: Literal["auto", "copy", "reference"] = "auto",
        onto: str | Path | None = None,
    ) -> Path:
        """Write a new folder with all that `load` needs: adapter, routers, head, prompts, golden outputs, model card.

        `copy` takes the files of the frozen base along, so that the folder works anywhere; `reference` keeps its name
        and fingerprint; `auto` copies what only this machine has, a local folder or GGUF file. sentence-transformers
        opens the folder too; see `unimoer.integrations.sentence_transformers`.

        `onto` is the run whose merged weights this one began with: both stages are written as one LoRA on *its* base,
        in bfloat16, and the merged copy is no longer needed.

        Raises:
            UserError: the folder exists or cannot be written, or `onto` is not the stage before this one.
        """
        first = None if onto is None else checkpoint_folder(Path(onto).expanduser())
        return save_portable(self.checkpoint, Path(folder).expanduser(), self.tasks, base, first)

    @cached_property
    def dimension(self) -> int:
        """Of a full vector."""
        return int(read_architecture(self.model.config).get_text_config().hidden_size)

    def encode(
        self,
        texts: Sequence[str],
        as_: Kind,
        *,
        dim: int | None = None,
        instruction: str | None = None,
        batch_tokens: int | None = None,
        report: Report | None = None,
    ) -> NDArray[np.float32]:
        """N texts -> `[N, dim]`, unit length, in their order. Queries and documents have prompts of their own.

        A text without a token, such as an empty one where prompts add none, has the vector 0: all its cosines are 0.

        `dim` keeps the first numbers of each vector, which is worth little unless the model was trained for it
        (`matryoshka`). `instruction` replaces the checkpoint's. `batch_tokens` is the size of a forward pass; None:
        what is fast on the device. All token ids are in memory at once; of a large corpus, give a part at a time.

        Raises:
            UserError: the model was not trained to embed.
            TypeError, ValueError: not a list of texts, an unknown kind, or a `dim` that there is not.
        """
        self._check(Task.EMBEDDING)
        if as_ not in get_args(Kind):
            raise ValueError(f"as_: '{as_}'{did_you_mean(as_, get_args(Kind))}")
        size = self.dimension if dim is None else dim
        if not 1 <= size <= self.dimension:
            raise ValueError(f"dim: {size} is not between 1 and {self.dimension}")
        listed = _texts("texts", texts)
        if not listed:
            return np.empty((0, size), np.float32)
        tokenise = self.model.prompter.queries if as_ == "query" else self.model.prompter.documents
        budget = batch_tokens or usual_budget(self.model.device)
        vectors = encode(self.model, tokenise(listed, instruction), batch_tokens=budget, report=report)
        if size == self.dimension:
            return vectors
        cut: NDArray[np.float32] = vectors[:, :size]
        lengths = np.linalg.norm(cut, axis=1, keepdims=True)
        return np.divide(cut, np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        batch_tokens: int | None = None,
        report: Report | None = None,
    ) -> NDArray[np.float32]:
        """N pairs (query, document) -> `[N]` scores of the checkpoint's head, logits or cosines: higher is better.

        Raises:
            UserError: the model was not trained to rerank, or its head reads a query with all its candidates.
            TypeError, ValueError: not a list of pairs of texts.
        """
        self._check(Task.RERANKING)
        head = self.model.config.reranking
        if head.kind.reads_lists:
            raise UserError(f"head '{head.head}' reads a query with all its candidates; use rerank")
        for index, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"pairs[{index}]: not a pair of query and document")
        queries = _texts("queries", [query for query, _ in pairs])
        documents = _texts("documents", [document for _, document in pairs])
        if not queries:
            return np.empty(0, np.float32)
        # Pairs of one query share what is computed of it.
        places: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            places.setdefault(query, []).append(place)
        listed = [[documents[place] for place in group] for group in places.values()]
        budget = batch_tokens or usual_budget(self.model.device)
        found = score_candidates(self.model, list(places), listed, instruction, batch_tokens=budget, report=report)
        scores = np.empty(len(queries), np.float32)
        for group, own in zip(places.values(), found, strict=True):
            scores[group] = own
        return scores

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        batch_tokens: int | None = None,
        report: Report | None = None,
    ) -> list[Ranked]:
        """The `top_k` best of the documents, or all, best first; equal scores keep the order that was given.

        Blank documents are not read: they come last, with the lowest score of the others. A head that reads lists takes
        the others in that order too, as a first stage ranks them.

        Raises:
            UserError: the model was not trained to rerank.
            TypeError, ValueError: not a text and a list of texts, or a negative `top_k`.
        """
        self._check(Task.RERANKING)
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k: {top_k} is negative")
        [asked], listed = _texts("query", [query]), _texts("documents", documents)
        budget = batch_tokens or usual_budget(self.model.device)
        places = filled(self.model, listed)
        candidates = [listed[place] for place in places]
        [found] = score_candidates(self.model, [asked], [candidates], instruction, batch_tokens=budget, report=report)
        scores = with_blank(found, places, len(listed))
        blank = np.ones(len(listed), bool)
        blank[places] = False
        order = np.lexsort((-scores, blank))[:top_k]
        return [Ranked(int(index), float(scores[index]), listed[index]) for index in order]

    def _check(self, task: Task) -> None:
        if task not in self.tasks:
            trained = " and ".join(self.tasks)
            raise UserError(f"{self.checkpoint}: was trained for {trained}, not for {task}")


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    """The texts as a list. A single string is refused: it would be taken for a list of its letters."""
    if isinstance(texts, str):
        raise TypeError(f"{name}: one string, where a list of texts is expected")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}]: {type(text).__name__}, not a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}[{index}]: holds half of a surrogate pair, which is no text") from None
    return listed
