"""docs/record.schema.json from the types in kdrun/runs/schema.py: `python scripts/docs_record.py` writes it; a test holds it up to date."""

from __future__ import annotations

import json
from pathlib import Path

from kdrun.runs.schema import json_schema

FILE = Path(__file__).parents[1] / "docs" / "record.schema.json"


def text() -> str:
    """The file's content."""
    return json.dumps(json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
