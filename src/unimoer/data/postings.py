"""The inverted index of BM25, built in bounded memory, in the files of bm25s.

`bm25s.BM25.index` holds every token of the corpus in Python lists and sorts all postings at once: some 50 bytes a
posting, 13 GB for 8.8 million passages of 30 different terms. Here texts pass in chunks, a chunk's postings go to a
temporary file, and a second pass puts them in their places of two arrays, which may lie on disk. The weights are those
of bm25s, bit for bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
import Stemmer

from unimoer.data.bm25s_alone import STOPWORDS_EN, bm25s
from unimoer.files import new_array

CHUNK = 16_384
"""Texts tokenised at a time: their tokens are Python lists."""
IN_MEMORY = 1 << 26
"""Bytes of postings that wait in memory between the passes; more go to a temporary file."""

REMEMBERED = 1_000_000
"""Words whose stems are remembered."""

_WORDS = re.compile(r"(?u)\b\w\w+\b").findall
_WEIGHTS, _DOCUMENTS, _STARTS = "data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy"
_VOCABULARY, _PARAMETERS = "vocab.index.json", "params.index.json"


@dataclass(frozen=True)
class Postings:
    """What each term weighs in each document that holds it, by term.

    Those of term t are `[starts[t] : starts[t + 1]]` of `weights` (float32) and `documents` (int32, ascending).
    """

    weights: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    vocabulary: dict[str, int]
    size: int
    """Documents, those without a term included."""

    def terms(self, tokens: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Documents and weights of every known token, in the order given, one that comes twice twice."""
        known = [self.vocabulary[token] for token in tokens if token in self.vocabulary]
        spans = [slice(self.starts[term], self.starts[term + 1]) for term in known]
        return [(self.documents[span], self.weights[span]) for span in spans]

    @classmethod
    def load(cls, folder: Path) -> Postings:
        """Memory-mapped, read only. `bm25s.BM25.load(folder, mmap=True)` reads the same files."""
        arrays = [np.load(folder / name, mmap_mode="r") for name in (_WEIGHTS, _DOCUMENTS)]
        vocabulary = json.loads((folder / _VOCABULARY).read_text("utf-8"))
        size = json.loads((folder / _PARAMETERS).read_text("utf-8"))["num_docs"]
        # Views without numpy's memmap class, whose every slice costs microseconds.
        weights, documents = (np.asarray(array) for array in arrays)
        return cls(weights, documents, np.load(folder / _STARTS), vocabulary, size)


def words(texts: Sequence[str], stemmer: Stemmer.Stemmer) -> list[list[str]]:
    """Stemmed words of each text without stop words."""
    if not texts:
        return []
    found: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return found


def build(
    texts: Iterable[str], stemmer: Stemmer.Stemmer, *, k1: float, b: float, folder: Path | None = None
) -> Postings:
    """Index texts that are read once. With a `folder`, which must exist, the arrays and a vocabulary are left there.

    Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, eq. 3.15 with Lucene's idf.
    """
    with SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder) if folder else None) as spool:
        stems = _Stems(stemmer)
        holding = np.zeros(0, dtype=np.int64)
        lengths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        sizes, first = [], 0
        for chunk in _chunks(texts):
            terms, documents, frequencies, length = _count(chunk, stems)
            for part in (terms, documents + np.int32(first), frequencies):
                spool.write(part.tobytes())
            size = len(stems.numbers)
            holding = np.bincount(terms, minlength=size) + np.pad(holding, (0, size - len(holding)))
            lengths.append(length)
            sizes.append(len(terms))
            first += len(chunk)
        spool.seek(0)
        starts = np.concatenate([[0], np.cumsum(holding)]).astype(np.int64)
        norms = _norms(np.concatenate(lengths), k1, b)
        idf = _idf(holding, first)
        weights = _array(folder, _WEIGHTS, int(starts[-1]), np.float32)
        placed = _array(folder, _DOCUMENTS, int(starts[-1]), np.int32)
        free = starts[:-1].copy()
        for size in sizes:
            terms, documents, frequencies = (_read(spool, size) for _ in range(3))
            # In float64 from the norm on and rounded once, as bm25s does.
            counts = frequencies.astype(np.float32)
            # Within a chunk postings stand by term and document; each term's go on where its last chunk's ended.
            here, begin, count = np.unique(terms, return_index=True, return_counts=True)
            target = np.repeat(free[here] - begin, count) + np.arange(size)
            weights[target] = idf[terms] * (counts / (norms[documents] + counts))
            placed[target] = documents
            free[here] += count
    if folder is not None:
        _describe(folder, starts, stems.numbers, first, k1, b)
    return Postings(weights, placed, starts, stems.numbers, first)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


class _Stems(dict[str, int]):
    """Word -> number of its stem, -1 for a stop word; what it has not met it stems and numbers."""

    def __init__(self, stemmer: Stemmer.Stemmer) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}
        self._stemmer = stemmer
        self.forget()

    def __missing__(self, word: str) -> int:
        self[word] = number = self.numbers.setdefault(self._stemmer.stemWord(word), len(self.numbers))
        return number

    def forget(self) -> None:
        """All words but the stop words; stems keep their numbers."""
        self.clear()
        self.update(dict.fromkeys(STOPWORDS_EN, -1))


def _count(texts: list[str], stems: _Stems) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Term, document and frequency of every posting, by term and then document, all int32; and words a document.

    Words are those of `bm25s.tokenize`, whose own lists of numbers take most of the time of an index.
    """
    found = [_WORDS(text.lower()) for text in texts]
    counts = np.fromiter(map(len, found), dtype=np.int64, count=len(texts))
    terms = np.fromiter(map(stems.__getitem__, chain.from_iterable(found)), dtype=np.int64, count=int(counts.sum()))
    documents = np.repeat(np.arange(len(texts)), counts)
    documents, terms = documents[terms >= 0], terms[terms >= 0]
    if len(stems) > REMEMBERED:
        stems.forget()
    pairs, frequencies = np.unique(terms << 32 | documents, return_counts=True)
    return (
        (pairs >> 32).astype(np.int32),
        (pairs & 0xFFFFFFFF).astype(np.int32),
        frequencies.astype(np.int32),
        np.bincount(documents, minlength=len(texts)),
    )


def _norms(lengths: np.ndarray, k1: float, b: float) -> np.ndarray:
    """`[N]` float64: k1 (1 - b + b length / mean length)."""
    mean = lengths.mean() if lengths.any() else 1.0
    norms: np.ndarray = k1 * ((1 - b) + b * lengths / mean)
    return norms


def _idf(holding: np.ndarray, size: int) -> np.ndarray:
    """`[V]` float32: Lucene's, from the number of documents that hold each term."""
    # Through math.log: numpy's may differ in the last bit.
    counts, places = np.unique(holding, return_inverse=True)
    values = [math.log(1 + (size - int(count) + 0.5) / (int(count) + 0.5)) for count in counts]
    return np.array(values, dtype=np.float32)[places]


def _array(folder: Path | None, name: str, size: int, dtype: Any) -> np.ndarray:
    return np.empty(size, dtype=dtype) if folder is None else new_array(folder / name, (size,), dtype)


def _read(spool: IO[bytes], size: int) -> np.ndarray:
    return np.frombuffer(spool.read(4 * size), dtype=np.int32)


def _describe(folder: Path, starts: np.ndarray, vocabulary: dict[str, int], size: int, k1: float, b: float) -> None:
    """The small files that bm25s expects beside the arrays."""
    np.save(folder / _STARTS, starts)
    (folder / _VOCABULARY).write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    parameters = {"k1": k1, "b": b, "delta": 0.5, "method": "lucene", "idf_method": "lucene", "dtype": "float32"}
    parameters |= {"int_dtype": "int32", "num_docs": size, "version": bm25s.__version__, "backend": "numpy"}
    (folder / _PARAMETERS).write_text(json.dumps(parameters), "utf-8")
