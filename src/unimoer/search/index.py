"""`SearchIndex`: add, replace and delete documents by id; find them by meaning, by words, or both; rerank the best."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args
from uuid import uuid4

import numpy as np

from unimoer.data.bm25 import BM25
from unimoer.errors import UserError, did_you_mean
from unimoer.evaluation.fusion import combine, fuse
from unimoer.evaluation.search import CHUNK
from unimoer.files import read_json
from unimoer.library import UniMoER
from unimoer.model.inference import Report
from unimoer.runs.folder import locked
from unimoer.search.store import Part, State, Store, text_hash
from unimoer.types import Run, Task

Retrieve = Literal["fused", "dense", "bm25"]
PART = 8192
"""Documents of a part: what is lost when an addition is killed."""
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
        self._store, self.model = store, model
        self._load()

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
        if place.exists() and any(path.name != ".lock" for path in place.iterdir()):
            raise UserError(f"{place}: is a folder with other files in it; choose a new one")
        loaded = UniMoER.load(model, device=device)
        if Task.EMBEDDING not in loaded.tasks:
            raise UserError(f"{model}: was not trained to embed, so there is nothing to index with")
        with locked(place):
            state = State(_name(model), identity(loaded), loaded.dimension, split_identifiers)
            store = Store(place, state)
            store.commit(state)
        return cls(store, loaded)

    @classmethod
    def open(cls, folder: str | Path, *, model: str | Path | None = None, device: str = "auto") -> Self:
        """An index that is there, with the model that it names, or the same one from another place.

        Raises:
            UserError: there is none, or its vectors are of another model.
        """
        store = Store.open(Path(folder).expanduser())
        loaded = UniMoER.load(model or store.state.model, device=device)
        found = identity(loaded)
        if found != store.state.identity:
            raise UserError(
                f"{folder}: its vectors are of another model: {store.state.model} ({store.state.identity}), "
                f"{model or store.state.model} is {found}; make another index, or name that model"
            )
        return cls(store, loaded)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(
        self, documents: Mapping[str, str] | Iterable[tuple[str, str]], *, report: Report | None = None
    ) -> dict[str, int]:
        """Add documents, id -> content, and replace those whose content has changed; what is the same is left alone.

        Nothing of it is seen before all is done. A call that was killed is finished by the same call: it embeds only
        what had not been. Returns how many were `added`, `replaced` and `unchanged`.

        Raises:
            UserError: another process writes here, or the disk is full.
        """
        counts = {"added": 0, "replaced": 0, "unchanged": 0}
        with self._writing() as store:
            pending = store.pending()
            # What is there, or waits, by id: the later one counts.
            known = {key: store.parts[name].hashes[row] for key, (name, row) in self._rows.items()}
            before = dict(known)
            known.update((key, digest) for part in pending for key, digest in zip(part.ids, part.hashes, strict=True))
            wanted: dict[str, str] = {}
            batch: dict[str, str] = {}
            pairs = documents.items() if isinstance(documents, Mapping) else documents
            for key, text in pairs:
                if not key:
                    raise UserError("a document has an empty id")
                digest = text_hash(text)
                wanted[key] = digest
                if known.get(key) == digest:
                    continue
                known[key] = digest
                # A dictionary keeps the first place of a key; the later text must be the later one.
                batch.pop(key, None)
                batch[key] = text
                if len(batch) == PART:
                    pending.append(self._embed(store, batch, pending, report))
                    batch = {}
            if batch:
                pending.append(self._embed(store, batch, pending, report))
            if pending:
                store.parts.update((part.folder.name, part) for part in pending)
                # Of what an earlier call has left, only what this one asks for.
                unasked = {part.folder.name: _unasked(part, wanted) for part in pending}
                self._commit(store, {**store.state.parts, **unasked}, set())
        for key, digest in wanted.items():
            counts["added" if key not in before else "unchanged" if before[key] == digest else "replaced"] += 1
        return counts

    def delete(self, ids: Iterable[str]) -> int:
        """Take documents out; returns how many of them there were."""
        gone = {key for key in ids if key in self._rows}
        if gone:
            with self._writing() as store:
                self._commit(store, dict(store.state.parts), gone)
        return len(gone)

    def keep_only(self, ids: Iterable[str]) -> int:
        """Delete every document that is not named; returns how many."""
        wanted = set(ids)
        return self.delete([key for key in self._rows if key not in wanted])

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
            depth: how many documents each kind of search brings into a fusion.
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
                runs.append(({} if self._bm25 is None else self._bm25.search({"": query}, wide), WORDS))
        found = _together(runs, rrf)
        order = sorted(found, key=lambda key: (-found[key], key))
        texts = {key: self._store.text(self._rows[key]) for key in order[: max(k, rerank)]}
        scores: Mapping[str, float] = {}
        own: dict[str, float] = {}
        if rerank and order:
            with _timed(took, "rerank"):
                top = order[:rerank]
                listed = self.model.rerank(query, [texts[key] for key in top])
                own = {top[one.index]: one.score for one in listed}
                both = combine([({"": own}, 1.0), ({"": {key: found[key] for key in top}}, WORDS)])[""]
                order = sorted(top, key=lambda key: (-both[key], key)) + order[rerank:]
                scores = both
        hits = [Hit(key, scores.get(key, found[key]), texts[key], found[key], own.get(key)) for key in order[:k]]
        return Hits(hits, {name: round(value, 2) for name, value in took.items()})

    def _nearest(self, vector: np.ndarray, k: int) -> dict[str, float]:
        """Exact, by blocks: `[d]` against all living vectors."""
        best: list[tuple[float, str]] = []
        for name, part in self._store.parts.items():
            dead = self._dead[name]
            for start in range(0, len(part.ids), CHUNK):
                scores = np.asarray(part.vectors[start : start + CHUNK], dtype=np.float32) @ vector
                scores[dead[(dead >= start) & (dead < start + CHUNK)] - start] = -np.inf
                top = np.argpartition(-scores, k - 1)[:k] if len(scores) > k else np.arange(len(scores))
                best += [(float(scores[row]), part.ids[start + row]) for row in top if scores[row] > -np.inf]
        return {key: score for score, key in sorted(best, key=lambda one: (-one[0], one[1]))[:k]}

    def _embed(self, store: Store, batch: dict[str, str], pending: list[Part], report: Report | None) -> Part:
        vectors = self.model.encode(list(batch.values()), "document", report=report)
        return store.add_pending(batch, vectors, pending)

    def _commit(self, store: Store, parts: dict[str, list[int]], gone: set[str]) -> None:
        """Of every id the last row lives, unless it is gone; then BM25 over what lives, and all of it is seen."""
        last: dict[str, tuple[str, int]] = {}
        dead = {name: set(rows) for name, rows in parts.items()}
        for name in parts:
            for row, key in enumerate(store.parts[name].ids):
                if row in dead[name]:
                    continue
                if key in gone:
                    dead[name].add(row)
                    continue
                if key in last:
                    other, place = last[key]
                    dead[other].add(place)
                last[key] = (name, row)
        living = {name: sorted(dead[name]) for name in parts if len(dead[name]) < len(store.parts[name].ids)}
        bm25 = None
        if last:
            bm25 = uuid4().hex[:12]
            (self._store.folder / "bm25").mkdir(exist_ok=True)
            texts, folder = _Texts(store, last), store.folder / "bm25" / bm25
            BM25(texts, split_identifiers=store.state.split_identifiers, folder=folder)
        store.commit(replace(store.state, parts=living, bm25=bm25, documents=len(last)))
        self._load()

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """The lock, and the state as it is once it is held: another process may have written meanwhile."""
        with locked(self._store.folder):
            self._store = Store.open(self._store.folder)
            self._load()
            yield self._store

    def _load(self) -> None:
        self._rows = self._store.rows
        self._dead = {name: np.array(rows, dtype=np.int64) for name, rows in self._store.state.parts.items()}
        name = self._store.state.bm25
        self._bm25 = None if name is None else BM25.load(self._store.folder / "bm25" / name)


class _Texts(Mapping[str, str]):
    """Contents of living documents, each read when it is asked for."""

    def __init__(self, store: Store, rows: Mapping[str, tuple[str, int]]) -> None:
        self._store, self._rows = store, rows

    def __getitem__(self, key: str) -> str:
        return self._store.text(self._rows[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


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


def _name(model: str | Path) -> str:
    """As another process finds it: a released model by its name, a folder by its whole path."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)


def identity(model: UniMoER) -> str:
    """Sixteen hex digits over all that decides about a vector: base, adapter, routers, prompts, limits."""
    about = read_json(model.checkpoint / "unimoer.json")
    settings = model.model.config.model_dump_json(exclude={"base"})
    digest = hashlib.sha256(f"{about['base_fingerprint']}|{settings}".encode())
    digest.update((model.checkpoint / "adapter.safetensors").read_bytes())
    return digest.hexdigest()[:16]
