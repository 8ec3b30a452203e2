"""The table of models: it has every known name, docs/models.md shows it, and so does the command."""

import json
from pathlib import Path

from flax_rerank.auto import AUTO_RERANKER_MAPPING
from flax_rerank.catalog import MODELS, as_table
from flax_rerank.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_known_name_is_in_the_table_with_its_class():
    of_name = {name: entry.reranker for entry in MODELS for name in entry.names}
    known = {name: config.model_class.__name__ for name, config in AUTO_RERANKER_MAPPING.items()}
    assert {name: of_name.get(name) for name in known} == known


def test_the_docs_show_the_table():
    assert as_table() in DOCS.read_text(encoding="utf-8")


def test_the_command_prints_it(capsys):
    assert main(["models"]) == 0
    assert capsys.readouterr().out == as_table() + "\n"
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["family"] for row in rows] == [entry.family for entry in MODELS]
