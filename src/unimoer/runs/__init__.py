"""One run: from its specification to trained weights and scores in a folder of its own."""

from unimoer.runs.events import Event, Watch, ignore
from unimoer.runs.execute import execute
from unimoer.runs.folder import checkpoint_folder, is_done, read_spec

__all__ = ["Event", "Watch", "checkpoint_folder", "execute", "ignore", "is_done", "read_spec"]
