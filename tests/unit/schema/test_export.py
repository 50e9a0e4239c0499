"""The committed JSON Schemas are those of the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unimoer.schema.export import export, schemas

COMMITTED = Path(__file__).parents[3] / "docs" / "schema"


def test_committed_schemas_are_current() -> None:
    committed = {path.name: path.read_text("utf-8") for path in COMMITTED.iterdir()}
    assert set(committed) == set(schemas()), "run `python -m unimoer.schema.export` and delete what is no longer there"
    for name, schema in schemas().items():
        assert committed[name] == schema, f"{name}: run `python -m unimoer.schema.export`"


@pytest.mark.parametrize("name", ["decision.json", "results.json", "plan.json", "training_line.json"])
def test_exported_schemas_name_every_field(tmp_path: Path, name: str) -> None:
    paths = export(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    schema = json.loads((tmp_path / name).read_text("utf-8"))
    assert schema["type"] == "object" and schema["properties"]
    # Logs may hold more than the models name; other files may not.
    assert schema["additionalProperties"] is (name == "training_line.json")
