"""BM25: candidate lists for reranking, hard negatives, and the reference row of every table.

Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, eq. 3.15 with Lucene's idf, as bm25s computes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
import Stemmer

from unimoer.assets import cache_dir, staged
from unimoer.data.corpus import LARGE
from unimoer.data.postings import Postings, build, words
from unimoer.types import Document, RetrievalDataset, Run

_WORD = re.compile(r"[A-Za-z0-9_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class BM25:
    """An index over documents, id -> content, with English stemming and stop words.

    `split_identifiers` indexes `readFile` and `read_file` by their parts as well, for source code. Documents are read
    once, one after the other. With a `folder`, which must not exist, the index is written there, whole or not at all,
    and memory-mapped; `load` opens it again.
    """

    def __init__(
        self,
        documents: Mapping[str, str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        split_identifiers: bool = False,
        folder: Path | None = None,
    ) -> None:
        # In the order of their ids, so that among equal scores the lower index is the lower id.
        self.document_ids = sorted(documents)
        self.k1, self.b, self.split_identifiers = k1, b, split_identifiers
        self._stemmer = Stemmer.Stemmer("english")
        content = hashlib.sha256(f"bm25|{k1}|{b}|{split_identifiers}".encode())

        def texts() -> Iterator[str]:
            for key in self.document_ids:
                text = documents[key]
                content.update(f"\0{key}\0{text}".encode())
                yield self._prepare(text)

        if folder is None:
            self._postings = build(texts(), self._stemmer, k1=k1, b=b)
            self.fingerprint = content.hexdigest()
            return
        with staged(folder) as temporary:
            temporary.mkdir()
            build(texts(), self._stemmer, k1=k1, b=b, folder=temporary)
            self.fingerprint = content.hexdigest()
            (temporary / "ids.json").write_text(json.dumps(self.document_ids), "utf-8")
            settings = {"k1": k1, "b": b, "split_identifiers": split_identifiers, "fingerprint": self.fingerprint}
            (temporary / "unimoer.json").write_text(json.dumps(settings), "utf-8")
        self._postings = Postings.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open an index that was written to `folder`."""
        index = cls.__new__(cls)
        settings = json.loads((folder / "unimoer.json").read_text("utf-8"))
        index.k1, index.b = settings["k1"], settings["b"]
        index.split_identifiers, index.fingerprint = settings["split_identifiers"], settings["fingerprint"]
        index.document_ids = json.loads((folder / "ids.json").read_text("utf-8"))
        index._stemmer = Stemmer.Stemmer("english")
        index._postings = Postings.load(folder)
        return index

    @classmethod
    def of(cls, dataset: RetrievalDataset, *, split_identifiers: bool = False, folder: Path | None = None) -> BM25:
        """Index the corpus of a data set, in `folder` if given; a large one in the cache folder, for the next call."""
        contents = _Contents(dataset.corpus)
        if folder is None and len(contents) >= LARGE:
            key = hashlib.sha256(f"{dataset.fingerprint}|{split_identifiers}".encode()).hexdigest()
            cached = cache_dir() / "bm25" / key[:32]
            if not cached.exists():
                # Another process may have built it meanwhile: the same data, so the same index.
                with suppress(FileExistsError):
                    return cls(contents, split_identifiers=split_identifiers, folder=cached)
            return cls.load(cached)
        return cls(contents, split_identifiers=split_identifiers, folder=folder)

    def search(
        self, queries: Mapping[str, str], top_k: int, *, threads: int | None = None
    ) -> dict[str, dict[str, float]]:
        """The `top_k` best documents of each query, best first; equal scores by ascending document id.

        Documents that share no term with the query score 0 and are left out, so a list may be shorter than `top_k`,
        and is empty for a query without a known term. `threads`: one a core for a large index, one for a small one.
        """
        tokens = self._tokens(list(queries.values()))
        if threads is None:
            threads = (os.cpu_count() or 1) if len(self.document_ids) >= LARGE else 1
        if threads == 1:
            return {query: self._best(found, top_k) for query, found in zip(queries, tokens, strict=True)}
        with ThreadPoolExecutor(threads) as pool:
            return dict(zip(queries, pool.map(lambda found: self._best(found, top_k), tokens), strict=True))

    def score(self, queries: Mapping[str, str], documents: Mapping[str, Collection[str]]) -> Run:
        """The scores of given documents, query id -> document ids, retrieved or not.

        Raises:
            KeyError: a document is not in the index.
        """
        run = {}
        tokens = self._tokens([queries[query] for query in documents])
        for (query, keys), found in zip(documents.items(), tokens, strict=True):
            places = np.array([self._position(key) for key in keys], dtype=np.int64)
            scores = np.zeros(len(places), dtype=np.float32)
            for holding, weights in self._postings.terms(found):
                where = np.minimum(np.searchsorted(holding, places), len(holding) - 1)
                scores += np.where(holding[where] == places, weights[where], np.float32(0))
            run[query] = dict(zip(keys, scores.tolist(), strict=True))
        return run

    def _best(self, tokens: list[str], top_k: int) -> dict[str, float]:
        terms = self._postings.terms(tokens)
        if not terms:
            return {}
        scores = np.zeros(len(self.document_ids), dtype=np.float32)
        for holding, weights in terms:
            np.add.at(scores, holding, weights)
        # The documents of one term alone say what the last place scores at least: all others below need no look.
        enough = [holding for holding, _ in terms if len(holding) >= top_k]
        least = _last_of(scores[min(enough, key=len)], top_k) if enough else np.float32(0)
        found = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores > 0)
        if len(found) > top_k:
            # Everything that ties with the last place stays in, and the sort below decides between them.
            found = found[scores[found] >= _last_of(scores[found], top_k)]
        best = found[np.argsort(-scores[found], kind="stable")][:top_k]
        return dict(zip([self.document_ids[place] for place in best], scores[best].tolist(), strict=True))

    def _position(self, key: str) -> int:
        place = bisect_left(self.document_ids, key)
        if place == len(self.document_ids) or self.document_ids[place] != key:
            raise KeyError(key)
        return place

    def _tokens(self, queries: Sequence[str]) -> list[list[str]]:
        return words([self._prepare(query) for query in queries], self._stemmer)

    def _prepare(self, text: str) -> str:
        if not self.split_identifiers:
            return text
        return _WORD.sub(_with_parts, text)


class _Contents(Mapping[str, str]):
    """Id -> content of a corpus, which may lie on disk."""

    def __init__(self, corpus: Mapping[str, Document]) -> None:
        self._corpus = corpus

    def __getitem__(self, key: str) -> str:
        return self._corpus[key].content

    def __iter__(self) -> Iterator[str]:
        return iter(self._corpus)

    def __len__(self) -> int:
        return len(self._corpus)


def _last_of(scores: np.ndarray, count: int) -> np.float32:
    """The `count`-th largest."""
    last: np.float32 = np.partition(scores, len(scores) - count)[len(scores) - count]
    return last


def _with_parts(word: re.Match[str]) -> str:
    """`readFile` -> `readFile read File`; the whole stays, because it is the rarer and better match."""
    parts = _PART.findall(word[0])
    return " ".join([word[0], *parts]) if len(parts) > 1 else word[0]
