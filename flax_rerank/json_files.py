"""JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The value in a JSON file. ValueError that names the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError that names the file if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value
