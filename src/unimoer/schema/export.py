"""JSON Schemas of every file that this package writes: `python -m unimoer.schema.export [FOLDER]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from unimoer.files import write_text
from unimoer.schema.base import Record
from unimoer.schema.decision import Decision
from unimoer.schema.plan import Plan
from unimoer.schema.rag import RagAnswer, RagCosts, RagPlan, RagQuestion, RagResults
from unimoer.schema.results import Results
from unimoer.schema.run import (
    ConflictLine,
    Environment,
    EvaluationSummary,
    QueryScores,
    RoutingLine,
    RunStatus,
    TrainingLine,
)

FOLDER = Path("docs/schema")
MODELS: tuple[type[Record], ...] = (
    Plan,
    Decision,
    Results,
    RunStatus,
    Environment,
    EvaluationSummary,
    TrainingLine,
    RoutingLine,
    ConflictLine,
    QueryScores,
    RagPlan,
    RagQuestion,
    RagAnswer,
    RagCosts,
    RagResults,
)


def schemas() -> Mapping[str, str]:
    """File name -> JSON Schema of the files as written, keys sorted."""
    return {
        re.sub(r"(?<!^)(?=[A-Z])", "_", model.__name__).lower() + ".json": json.dumps(
            model.model_json_schema(mode="serialization"), indent=2, sort_keys=True
        )
        + "\n"
        for model in MODELS
    }


def export(folder: Path = FOLDER) -> list[Path]:
    """Write all schemas; returns their paths."""
    for name, schema in schemas().items():
        write_text(folder / name, schema)
    return [folder / name for name in schemas()]


if __name__ == "__main__":
    export(*map(Path, sys.argv[1:2]))
