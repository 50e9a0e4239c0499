"""Search with a trained model: an index on disk, and queries against it."""

from unimoer.library.hits import Hit, Hits
from unimoer.search.index import SearchIndex
from unimoer.search.sources import read_documents

__all__ = ["Hit", "Hits", "SearchIndex", "read_documents"]
