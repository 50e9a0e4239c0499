"""Trained models that come with this package, by name: each a folder as `UniMoER.save` writes it.

They hold an adapter and a card; the base that they name is fetched at the first use.
"""

from __future__ import annotations

from pathlib import Path

RELEASED = {file.parent.name: file.parent for file in sorted(Path(__file__).parent.glob("*/unimoer.json"))}
