"""BM25: candidate lists for reranking, hard negatives, and the reference row of every table.

Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, eq. 3.15 with Lucene's idf, through bm25s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping

import bm25s
import numpy as np
import Stemmer

from unimoer.types import RetrievalDataset, Run

_WORD = re.compile(r"[A-Za-z0-9_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class BM25:
    """An index over documents, id -> content, with English stemming and stop words.

    `split_identifiers` indexes `readFile` and `read_file` by their parts as well, for source code.
    """

    def __init__(
        self, documents: Mapping[str, str], *, k1: float = 0.9, b: float = 0.4, split_identifiers: bool = False
    ) -> None:
        # In the order of their ids, so that among equal scores the lower index is the lower id.
        self.document_ids = sorted(documents)
        self.k1, self.b, self.split_identifiers = k1, b, split_identifiers
        content = hashlib.sha256(f"bm25|{k1}|{b}|{split_identifiers}".encode())
        for key in self.document_ids:
            content.update(f"\0{key}\0{documents[key]}".encode())
        self.fingerprint = content.hexdigest()
        self._positions = {key: position for position, key in enumerate(self.document_ids)}
        self._stemmer = Stemmer.Stemmer("english")
        self._index: bm25s.BM25 | None = None
        tokens = bm25s.tokenize(
            [self._prepare(documents[key]) for key in self.document_ids],
            stopwords="en",
            stemmer=self._stemmer,
            show_progress=False,
        )
        # bm25s cannot index an empty vocabulary: no documents, or documents of stop words only.
        if tokens.vocab:
            self._index = bm25s.BM25(k1=k1, b=b, backend="numpy")
            self._index.index(tokens, show_progress=False)

    @classmethod
    def of(cls, dataset: RetrievalDataset, *, split_identifiers: bool = False) -> BM25:
        """Index the corpus of a data set."""
        contents = {key: document.content for key, document in dataset.corpus.items()}
        return cls(contents, split_identifiers=split_identifiers)

    def search(self, queries: Mapping[str, str], top_k: int) -> dict[str, dict[str, float]]:
        """The `top_k` best documents of each query, best first; equal scores by ascending document id.

        Documents that share no term with the query score 0 and are left out, so a list may be shorter than `top_k`,
        and is empty for a query without a known term.
        """
        run = {}
        for query_id, scores in zip(queries, map(self._scores, queries.values()), strict=True):
            found = np.flatnonzero(scores > 0)
            if len(found) > top_k:
                # Everything that ties with the last place stays in, and the sort below decides between them.
                cut = np.partition(scores[found], len(found) - top_k)[len(found) - top_k]
                found = found[scores[found] >= cut]
            best = found[np.argsort(-scores[found], kind="stable")][:top_k]
            run[query_id] = {self.document_ids[position]: float(scores[position]) for position in best}
        return run

    def score(self, queries: Mapping[str, str], documents: Mapping[str, Collection[str]]) -> Run:
        """The scores of given documents, query id -> document ids, retrieved or not."""
        run = {}
        for query_id, document_ids in documents.items():
            scores = self._scores(queries[query_id])
            run[query_id] = {key: float(scores[self._positions[key]]) for key in document_ids}
        return run

    def _scores(self, query: str) -> np.ndarray:
        """`[documents]` float32."""
        if self._index is None:
            return np.zeros(len(self.document_ids), dtype=np.float32)
        [tokens] = bm25s.tokenize(
            [self._prepare(query)], stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        known = self._index.get_tokens_ids(tokens)
        return self._index.get_scores_from_ids(known)

    def _prepare(self, text: str) -> str:
        if not self.split_identifiers:
            return text
        return _WORD.sub(_with_parts, text)


def _with_parts(word: re.Match[str]) -> str:
    """`readFile` -> `readFile read File`; the whole stays, because it is the rarer and better match."""
    parts = _PART.findall(word[0])
    return " ".join([word[0], *parts]) if len(parts) > 1 else word[0]
