"""Code search: the first sentence of a docstring -> the function's source without its docstring."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from unimoer.assets import ASSETS, Asset, members, read_members
from unimoer.data.embedded.text import collapse, hash_fraction, normalise, short_hash, split_of
from unimoer.types import Document, RetrievalDataset

PACKAGES = ("networkx", "django", "sympy", "nltk")
_CAP = 1500
_SUMMARY_WORDS = range(5, 41)
_SOURCE_LINES = range(4, 61)
_SKIPPED_FILES = re.compile(
    r"/(?:tests?|testing|conftest\.py|_?vendored|externals|migrations|_generated|parsing)(?:/|$)|/test_"
)
_SKIPPED_SUMMARIES = re.compile(
    r"(?:see |todo|deprecated|internal|helper|alias|same as|test|overrid)|.*(?:>>>|\bdocstring\b|::)", re.IGNORECASE
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class _Function:
    key: str
    file: str
    summary: str
    source: str


def build() -> RetrievalDataset:
    """Functions as documents, their summaries as queries, split by file so that no test file was seen in training."""
    corpus: dict[str, Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    seen: set[str] = set()
    for package in PACKAGES:
        for function in _usable(package):
            document_id = "c" + short_hash(function.key, 12)
            corpus[document_id] = Document(function.source)
            summary = normalise(function.summary)
            if summary in seen:
                continue
            seen.add(summary)
            query_id = "q" + document_id
            queries[query_id] = function.summary
            split = split_of(package + function.file, dev=0.1, test=0.15, salt="code")
            qrels[split][query_id] = {document_id: 1}
    return RetrievalDataset("code", corpus, queries, qrels)


def _usable(package: str) -> list[_Function]:
    """At most `_CAP` functions; a summary that several functions share cannot tell them apart and is dropped."""
    by_summary: defaultdict[str, list[_Function]] = defaultdict(list)
    for file, source in _sources(ASSETS[package]):
        for function in _functions(package, file, source):
            by_summary[normalise(function.summary)].append(function)
    unique = [group[0] for group in by_summary.values() if len(group) == 1]
    return sorted(unique, key=lambda function: hash_fraction(function.key))[:_CAP]


def _sources(asset: Asset) -> Iterator[tuple[str, str]]:
    """Path inside the package and text of each module, tests and vendored code left out."""
    root = f"{asset.package}/"
    names = [name for name in members(asset, asset.members[0]) if not _SKIPPED_FILES.search(f"/{name[len(root) :]}")]
    # Folder by folder: as plain strings "a/b.py" and "a_c.py" would change places, and with them equal keys.
    names.sort(key=lambda name: name.split("/"))
    for name, content in read_members(asset, names):
        try:
            yield name[len(root) :], content.decode().replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            continue


def _functions(package: str, file: str, source: str) -> Iterator[_Function]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
            tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.split("\n")
    for owner, node in _definitions(tree, ""):
        docstring = ast.get_docstring(node)
        # The length guards functions that are nothing but a docstring.
        if not docstring or node.name.startswith("__") or len(node.body) < 2:
            continue
        summary, code = _summary(docstring), _without_docstring(node, lines)
        if code.count("\n") + 1 in _SOURCE_LINES and _asks_something(summary, node.name):
            yield _Function(f"{package}:{file}:{owner}{node.name}", file, summary, code)


def _definitions(node: ast.AST, owner: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of the module and of its classes, with `Class.` of the innermost class; nested functions are part of
    their parent's source and do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{child.name}.")
        elif isinstance(child, _FUNCTIONS):
            yield owner, child


def _summary(docstring: str) -> str:
    """The first sentence, with the marks of reStructuredText removed."""
    text = collapse(re.split(r"\n\s*\n", docstring.strip())[0])
    text = re.sub(r":(?:\w+:)+`~?([^`<]*)(?:<[^>]*>)?`", r"\1", text).replace("`", "")
    sentence = re.match(r"(.+?[.!?])(?:\s+[A-Z(]|$)", text)
    return (sentence[1] if sentence else text).strip()


def _without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    docstring = node.body[0]
    kept = lines[start : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(line.rstrip() for line in kept))
    return re.sub(r"\n\s*\n+", "\n", code).strip()


def _asks_something(summary: str, name: str) -> bool:
    """A summary that could be a query: a whole sentence that says more than the function's name does."""
    if len(summary.split()) not in _SUMMARY_WORDS or not summary.isascii() or _SKIPPED_SUMMARIES.match(summary):
        return False
    words = set(normalise(summary).split()) - {"the", "a", "an", "of"}
    return not words <= set(normalise(re.sub(r"([a-z])([A-Z])", r"\1 \2", name)).split())
