"""Text in, token batches out: data sets from every format, negatives, prompts, sampling, collation."""

from unimoer.data.formats import check, judged, load_dataset, write_beir
from unimoer.data.subset import subset

__all__ = ["check", "judged", "load_dataset", "subset", "write_beir"]
