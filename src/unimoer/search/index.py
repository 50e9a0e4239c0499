"""`SearchIndex`: add, replace and delete documents by id; find them by meaning, by words, or both; rerank the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch

from unimoer.errors import UserError, did_you_mean
from unimoer.evaluation.fusion import combine, fuse
from unimoer.library import UniMoER
from unimoer.model.inference import Report
from unimoer.runs.folder import locked
from unimoer.search import changes
from unimoer.search.changes import apply
from unimoer.search.identity import identity, name_of
from unimoer.search.store import Part, State, Store, text_hash
from unimoer.types import Run, Task

Retrieve = Literal["fused", "dense", "bm25"]
DEPTH = 100
"""Documents that each kind of search brings into a fusion."""
WORDS = 0.5
"""Weight of BM25's standardised scores where those of the vectors have 1: chosen on dev (docs/results/levers.md)."""


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    score: float
    """What the order comes from."""
    text: str
    retrieval: float
    """Its score among what was retrieved: a cosine, BM25's, or of both fused."""
    reranking: float | None = None
    """The score head's, of those that were reranked."""


@dataclass(frozen=True, slots=True)
class Hits:
    hits: list[Hit]
    milliseconds: dict[str, float]
    """Of each stage: `embed`, `dense`, `bm25`, `rerank`."""


class SearchIndex:
    """Documents of a folder, with their vectors by one model.

        index = SearchIndex.create("my-index", "smollm2-135m-search")
        index.add({"a": "The red kettle.", "b": "A bench."})
        for hit in index.search("kettle", 10).hits: print(hit.id, hit.score)

    Searching reads; one process at a time may write. What a reader has opened stays as it was until it opens anew.
    """

    def __init__(self, store: Store, model: UniMoER) -> None:
        self.model, self._identity = model, identity(model)
        self._show(store)

    @classmethod
    def create(
        cls, folder: str | Path, model: str | Path, *, split_identifiers: bool = False, device: str = "auto"
    ) -> Self:
        """A new, empty index, or the one that is there, which must be of the same model.

        `split_identifiers` lets BM25 find `readFile` and `read_file` by their parts, for source code.

        Raises:
            UserError: the model cannot embed, or the folder holds an index of another one.
        """
        place = Path(folder).expanduser()
        if (place / "index.json").exists():
            index = cls.open(place, model=model, device=device)
            if split_identifiers and not index._store.state.split_identifiers:
                raise UserError(f"{place}: BM25 here does not split identifiers; make another index")
            return index
        if place.exists() and (not place.is_dir() or any(path.name != ".lock" for path in place.iterdir())):
            raise UserError(f"{place}: is not an index, and not empty; choose a new folder")
        loaded = UniMoER.load(model, device=device)
        if Task.EMBEDDING not in loaded.tasks:
            raise UserError(f"{model}: was not trained to embed, so there is nothing to index with")
        with locked(place):
            # Another process may have made one while the model was loaded.
            if not (place / "index.json").exists():
                state = State(name_of(model), identity(loaded), split_identifiers)
                Store(place, state).commit(state, finished=True)
        return cls._of(place, loaded)

    @classmethod
    def open(cls, folder: str | Path, *, model: str | Path | None = None, device: str = "auto") -> Self:
        """An index that is there, with the model that it names, or the same one from another place.

        Raises:
            UserError: there is none, or its vectors are of another model.
        """
        place = Path(folder).expanduser()
        named = Store.open(place).state.model
        try:
            loaded = UniMoER.load(model or named, device=device)
        except UserError as error:
            if model is not None:
                raise
            raise UserError(f"{folder}: its model cannot be loaded; say where it is (--model): {error}") from None
        return cls._of(place, loaded)

    @classmethod
    def _of(cls, folder: Path, loaded: UniMoER) -> Self:
        """Opened after the model, which takes seconds: a writer may come meanwhile."""
        index = cls(Store.open(folder), loaded)
        index._check()
        return index

    def _check(self) -> None:
        state = self._store.state
        if self._identity != state.identity:
            raise UserError(
                f"{self._store.folder}: its vectors are of another model: {state.model} ({state.identity}), not of "
                f"{self.model.checkpoint} ({self._identity}); make another index, or name that model"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(
        self, documents: Mapping[str, str] | Iterable[tuple[str, str]], *, report: Report | None = None
    ) -> dict[str, int]:
        """Add documents, id -> content, and replace those whose content has changed; what is the same is left alone.

        Nothing of it is seen before all is done. A call that was killed is finished by the same call: it embeds only
        what had not been. Returns how many were `added`, `replaced` and `unchanged`, and how many texts were
        `superseded` by a later one of the same id in the same call.

        Raises:
            UserError: another process writes here, or the disk is full.
        """
        counts = {"added": 0, "replaced": 0, "unchanged": 0, "superseded": 0}
        with self._writing() as store:
            pending = store.pending()
            # What is there, or waits, by id: the later one counts.
            known = {key: store.parts[name].hashes[row] for key, (name, row) in self._rows.items()}
            before = dict(known)
            known.update((key, digest) for part in pending for key, digest in zip(part.ids, part.hashes, strict=True))
            wanted: dict[str, str] = {}
            batch: dict[str, str] = {}
            size = 0
            pairs = documents.items() if isinstance(documents, Mapping) else documents
            for key, text in pairs:
                if not key:
                    raise UserError("a document has an empty id")
                digest = text_hash(text)
                counts["superseded"] += key in wanted and wanted[key] != digest
                wanted[key] = digest
                if known.get(key) == digest:
                    continue
                known[key] = digest
                # A dictionary keeps the first place of a key; the later text must be the later one.
                batch.pop(key, None)
                batch[key] = text
                size += len(text)
                if len(batch) == changes.PART or size >= changes.CHARACTERS:
                    pending.append(self._embed(store, batch, pending, report))
                    batch, size = {}, 0
            if batch:
                pending.append(self._embed(store, batch, pending, report))
            if pending:
                # Of what an earlier call has left, only what this one asks for.
                unasked = {part.folder.name: _unasked(part, wanted) for part in pending}
                self._show(apply(store, pending, unasked, set(), finished=True))
        for key, digest in wanted.items():
            counts["added" if key not in before else "unchanged" if before[key] == digest else "replaced"] += 1
        return counts

    def delete(self, ids: Iterable[str]) -> int:
        """Take documents out; returns how many of them there were."""
        named = set(ids)
        return self._delete(lambda key: key in named)

    def keep_only(self, ids: Iterable[str]) -> int:
        """Delete every document that is not named; returns how many."""
        named = set(ids)
        return self._delete(lambda key: key not in named)

    def _delete(self, chosen: Callable[[str], bool]) -> int:
        with self._writing() as store:
            gone = {key for key in self._rows if chosen(key)}
            if gone:
                self._show(apply(store, [], {}, gone, finished=False))
        return len(gone)

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        retrieve: Retrieve = "fused",
        rerank: int = 0,
        depth: int = DEPTH,
        rrf: bool = False,
    ) -> Hits:
        """The k best documents of a query.

        Args:
            retrieve: by the vectors, by BM25, or by both: standardised scores added up, BM25's with weight 0.5.
            rerank: how many of the best are scored again, with the query beside them; their order is that of the score
                head's and the retrieval's standardised scores together. 0: none.
            depth: how many documents each kind of search brings into a fusion; k or `rerank` where those are more.
            rrf: fuse by reciprocal ranks instead, which has no weight.

        Raises:
            UserError: the model was not trained to rerank.
            ValueError: a number that is not positive, or an unknown way.
        """
        if retrieve not in get_args(Retrieve):
            raise ValueError(f"retrieve: '{retrieve}'{did_you_mean(retrieve, get_args(Retrieve))}")
        if k < 1 or depth < 1 or rerank < 0:
            raise ValueError(f"k: {k}, depth: {depth}, rerank: {rerank}; must be positive")
        took: dict[str, float] = {}
        if not query.strip():
            return Hits([], took)
        wide = max(k, rerank, depth)
        runs: list[tuple[Run, float]] = []
        if retrieve != "bm25":
            with _timed(took, "embed"):
                vector = self.model.encode([query], "query")[0]
            with _timed(took, "dense"):
                runs.append(({"": self._nearest(vector, wide)}, 1.0))
        if retrieve != "dense":
            with _timed(took, "bm25"):
                bm25 = self._store.bm25
                runs.append(({} if bm25 is None else bm25.search({"": query}, wide), WORDS))
        found = _together(runs, rrf)
        order = sorted(found, key=lambda key: (-found[key], key))
        texts = {key: self._store.text(self._rows[key]) for key in order[: max(k, rerank)]}
        scores: dict[str, float] = {}
        own: dict[str, float] = {}
        if rerank and order:
            with _timed(took, "rerank"):
                top = order[:rerank]
                listed = self.model.rerank(query, [texts[key] for key in top])
                own = {top[one.index]: one.score for one in listed}
                both = combine([({"": own}, 1.0), ({"": {key: found[key] for key in top}}, WORDS)])[""]
                rest = order[rerank:]
                order = sorted(top, key=lambda key: (-both[key], key)) + rest
                # Those that were not scored again lie below those that were, as far apart as they were.
                lowest = both[order[len(top) - 1]] - (found[rest[0]] if rest else 0.0)
                scores = {**both, **{key: found[key] + lowest for key in rest}}
        hits = [Hit(key, scores.get(key, found[key]), texts[key], found[key], own.get(key)) for key in order[:k]]
        return Hits(hits, {name: round(value, 2) for name, value in took.items()})

    def _nearest(self, vector: np.ndarray, k: int) -> dict[str, float]:
        """Exact: `[d]` against all living vectors; equal scores by id."""
        best: list[tuple[float, str]] = []
        for name, dead in self._dead.items():
            part = self._store.parts[name]
            # PyTorch widens half precision in a third of NumPy's time.
            scores = (torch.from_numpy(part.vectors).float() @ torch.from_numpy(vector)).numpy()
            scores[dead] = -np.inf
            least = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) > k else -np.inf
            top = np.flatnonzero((scores >= least) & (scores > -np.inf))
            best += [(float(scores[row]), part.ids[row]) for row in top]
        return {key: score for score, key in sorted(best, key=lambda one: (-one[0], one[1]))[:k]}

    def _embed(self, store: Store, batch: dict[str, str], pending: list[Part], report: Report | None) -> Part:
        vectors = self.model.encode(list(batch.values()), "document", report=report)
        return store.add_pending(batch, vectors, pending)

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """The lock, and the state as it is once it is held: another process may have written meanwhile."""
        with locked(self._store.folder):
            self._show(Store.open(self._store.folder))
            self._check()
            yield self._store

    def _show(self, store: Store) -> None:
        """Search what a store holds."""
        self._store, self._rows = store, store.rows
        self._dead = {name: np.array(rows, dtype=np.int64) for name, rows in self._store.state.parts.items()}


@contextmanager
def _timed(into: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    into[name] = (time.perf_counter() - started) * 1000


def _together(runs: Sequence[tuple[Run, float]], rrf: bool) -> Mapping[str, float]:
    if len(runs) == 1:
        return runs[0][0].get("", {})
    both = fuse([run for run, _ in runs]) if rrf else combine(runs)
    return both.get("", {})


def _unasked(part: Part, wanted: Mapping[str, str]) -> list[int]:
    """Rows of documents that are not, or not so, among those asked for."""
    pairs = enumerate(zip(part.ids, part.hashes, strict=True))
    return [row for row, (key, digest) in pairs if wanted.get(key) != digest]
