"""`SearchIndex`: add, replace and delete documents by id; find them by meaning, by words, or both; rerank the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from unimoer.errors import UserError, did_you_mean
from unimoer.library import UniMoER
from unimoer.library.hits import Hit, Hits, timed
from unimoer.library.identity import identity, name_of, text_hash
from unimoer.model.inference import Report
from unimoer.runs.folder import locked
from unimoer.search import changes
from unimoer.search.changes import apply, choose
from unimoer.search.neighbours import Ann, check
from unimoer.search.snapshot import Retrieved, Snapshot, arrange
from unimoer.search.store import Part, State, Store
from unimoer.search.vectors import Precision
from unimoer.types import Task

Retrieve = Literal["fused", "dense", "bm25"]
DEPTH = 100
"""Documents that each kind of search brings into a fusion."""


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
        cls,
        folder: str | Path,
        model: str | Path,
        *,
        split_identifiers: bool = False,
        vectors: Precision | None = None,
        ann: Ann | None = None,
        device: str = "auto",
    ) -> Self:
        """A new, empty index, or the one that is there, which must be of the same model.

        Args:
            split_identifiers: let BM25 find `readFile` and `read_file` by their parts, for source code.
            vectors: as which numbers they are kept; None: as they are there, in a new index as `float16`.
            ann: how near ones are found; None: as so far, in a new index `auto`. Another one may be chosen at any time.

        Raises:
            UserError: the model cannot embed, the folder holds an index of another one or of other numbers, or FAISS
                is asked for and not installed.
            ValueError: an unknown kind of vectors or of search.
        """
        for name, value, kind in (("vectors", vectors, Precision), ("ann", ann, Ann)):
            if value is not None and value not in get_args(kind):
                raise ValueError(f"{name}: '{value}'{did_you_mean(value, get_args(kind))}")
        check(ann or "auto")
        place = Path(folder).expanduser()
        if (place / "index.json").exists():
            index = cls.open(place, model=model, device=device)
            if split_identifiers and not index._store.state.split_identifiers:
                raise UserError(f"{place}: BM25 here does not split identifiers; make another index")
            if vectors not in (None, index._store.state.vectors):
                raise UserError(f"{place}: keeps its vectors as {index._store.state.vectors}; make another index")
            if ann is not None and ann != index._store.state.ann:
                with index._writing() as store:
                    index._show(choose(store, ann))
            return index
        if place.exists() and (not place.is_dir() or any(path.name != ".lock" for path in place.iterdir())):
            raise UserError(f"{place}: is not an index, and not empty; choose a new folder")
        loaded = UniMoER.load(model, device=device)
        if Task.EMBEDDING not in loaded.tasks:
            raise UserError(f"{model}: was not trained to embed, so there is nothing to index with")
        with locked(place):
            # Another process may have made one while the model was loaded.
            if not (place / "index.json").exists():
                kept, how = vectors or "float16", ann or "auto"
                state = State(name_of(model), identity(loaded), split_identifiers, vectors=kept, ann=how)
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
        index._checked(index._store)
        return index

    def _checked(self, store: Store) -> Store:
        """Before it is shown: what holds vectors of another model is not searched, not even once."""
        state = store.state
        if self._identity != state.identity:
            raise UserError(
                f"{store.folder}: its vectors are of another model: {state.model} ({state.identity}), not of "
                f"{self.model.checkpoint} ({self._identity}); make another index, or name that model"
            )
        return store

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    @property
    def folder(self) -> Path:
        return self._store.folder

    @property
    def kind(self) -> str:
        """In words: the numbers of its vectors, and how they are searched as it is now."""
        how = {"exact": "exact", "ivf": "FAISS IVF", "hnsw": "FAISS HNSW"}[self._shown.dense.kind]
        return f"{self._store.state.vectors} vectors, {how} search"

    def add(
        self, documents: Mapping[str, str] | Iterable[tuple[str, str]], *, report: Report | None = None
    ) -> dict[str, int]:
        """Add documents, id -> content, and replace those whose content has changed; what is the same is left alone.

        Nothing of it is seen before all is done. A call that was killed is finished by the same call: it embeds only
        what had not been. Returns how many were `added`, `replaced` and `unchanged`, and how many texts were
        `superseded` by a later one of the same id in the same call.

        Raises:
            UserError: another process writes here, the disk is full, or FAISS is wanted and not installed.
        """
        counts = {"added": 0, "replaced": 0, "unchanged": 0, "superseded": 0}
        with self._writing() as store:
            check(store.state.ann)
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
                try:
                    key.encode()
                except UnicodeEncodeError:
                    raise UserError(f"{key!r}: an id with half of a surrogate pair, which no file can hold") from None
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
        exact: bool = False,
    ) -> Hits[Hit]:
        """The k best documents of a query.

        Args:
            retrieve: by the vectors, by BM25, or by both: standardised scores added up, BM25's with weight 0.5.
            rerank: how many of the best are scored again, with the query beside them; their order is that of the score
                head's and the retrieval's standardised scores together. 0: none.
            depth: how many documents each kind of search brings into a fusion; k or `rerank` where those are more.
            rrf: fuse by reciprocal ranks instead, which has no weight.
            exact: look at all vectors, where FAISS would look at some.

        Raises:
            UserError: the model was not trained to rerank, or the index is searched by FAISS, which is not installed.
            ValueError: a number that is not positive, or an unknown way.
        """
        took: dict[str, float] = {}
        vector = None
        if not self.model.model.prompter.is_blank(query) and retrieve != "bm25":
            with timed(took, "embed"):
                vector = self.model.encode([query], "query")[0]
        found = self.retrieve(query, vector, k, retrieve=retrieve, rerank=rerank, depth=depth, rrf=rrf, exact=exact)
        took |= found.milliseconds
        own = None
        if rerank and found.texts:
            with timed(took, "rerank"):
                listed = self.model.rerank(query, found.texts[:rerank])
                own = [one.score for one in sorted(listed)]
        return Hits(arrange(found, k, own), took)

    def retrieve(
        self,
        query: str,
        vector: np.ndarray | None,
        k: int,
        *,
        retrieve: Retrieve = "fused",
        rerank: int = 0,
        depth: int = DEPTH,
        rrf: bool = False,
        exact: bool = False,
    ) -> Retrieved:
        """`search` without the model: the query's vector `[d]` is given, None for `bm25`; `arrange` does the rest.

        Raises:
            UserError, ValueError: as `search`.
        """
        if retrieve not in get_args(Retrieve):
            raise ValueError(f"retrieve: '{retrieve}'{did_you_mean(retrieve, get_args(Retrieve))}")
        if k < 1 or depth < 1 or rerank < 0:
            raise ValueError(f"k: {k}, depth: {depth}, rerank: {rerank}; must be positive")
        if self.model.model.prompter.is_blank(query):
            return Retrieved({}, [], {})
        return self._shown.retrieve(
            query,
            vector,
            words=retrieve != "dense",
            wide=max(k, rerank, depth),
            texts=max(k, rerank),
            rrf=rrf,
            exact=exact,
        )

    def refresh(self) -> bool:
        """Open the index anew if another process has changed it; whether it had."""
        if self._store.current:
            return False
        self._show(self._checked(Store.open(self._store.folder)))
        return True

    def _embed(self, store: Store, batch: dict[str, str], pending: list[Part], report: Report | None) -> Part:
        vectors = self.model.encode(list(batch.values()), "document", report=report)
        return store.add_pending(batch, vectors, pending)

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """The lock, and the state as it is once it is held: another process may have written meanwhile."""
        with locked(self._store.folder):
            self._show(self._checked(Store.open(self._store.folder)))
            yield self._store

    def _show(self, store: Store) -> None:
        """Search what a store holds."""
        self._shown = Snapshot(store)

    @property
    def _store(self) -> Store:
        return self._shown.store

    @property
    def _rows(self) -> dict[str, tuple[str, int]]:
        return self._shown.rows


def _unasked(part: Part, wanted: Mapping[str, str]) -> list[int]:
    """Rows of documents that are not, or not so, among those asked for."""
    pairs = enumerate(zip(part.ids, part.hashes, strict=True))
    return [row for row, (key, digest) in pairs if wanted.get(key) != digest]
