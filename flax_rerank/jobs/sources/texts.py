"""Queries and corpora: texts by id.

.jsonl  BEIR's objects, {"_id": ..., "title": ..., "text": ...}
.tsv    id and text, or (passages) id, title and text, between tabs, without quoting; the first line decides. A first
        line of these names, "_id" or "id" among them, is a header and may have them in another order.

A passage is its title and its text with a space between, stripped, as in FlagEmbedding's evaluation.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.jsonl import parse_object
from flax_rerank.jobs.sources.lines import numbered_lines

PLAIN = ("id", "text")
TITLED = ("id", "title", "text")


def read_texts(path: str, *, titles: bool) -> Iterator[tuple[int, str, str]]:
    """The line (from 1), id and text of each query or passage in a .jsonl or .tsv (.gz, .zst or neither).

    Args:
        path: the file, or its URL.
        titles: texts may have them, as passages may and queries may not.

    Raises:
        ValueError: another kind of file, or a line at fault, as "path:line: reason".
    """
    stem = path.removesuffix(files.compression_of(path))
    if stem.endswith(".jsonl"):
        return _read_jsonl(path, titles)
    if stem.endswith(".tsv"):
        return _read_tsv(path, titles)
    raise ValueError(f"{path}: texts come from .jsonl or .tsv files (also .gz, .zst)")


def beir_files(folder: str) -> tuple[str, str]:
    """The queries and the corpus of a BEIR folder (a path or a URL).

    Raises:
        FileNotFoundError: one is not there.
    """
    found = files.sizes(folder)
    for name in ("queries.jsonl", "corpus.jsonl"):
        if name not in found:
            raise FileNotFoundError(f"no {name} in {folder}: a BEIR folder has queries.jsonl and corpus.jsonl")
    parent = folder.rstrip("/") if files.is_url(folder) else str(Path(folder))
    return f"{parent}/queries.jsonl", f"{parent}/corpus.jsonl"


def _read_jsonl(path: str, titles: bool) -> Iterator[tuple[int, str, str]]:
    for number, line in numbered_lines(path):
        try:
            record = parse_object(line)
            text = _string(record, "text")
            if titles:
                title = "" if record.get("title") is None else _string(record, "title")
                text = f"{title} {text}".strip()
            yield number, _string(record, "_id"), text
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def _read_tsv(path: str, titles: bool) -> Iterator[tuple[int, str, str]]:
    columns: tuple[str, ...] = ()
    for number, line in numbered_lines(path):
        try:
            cells = line.decode("utf-8").rstrip("\r\n").split("\t")
            if not columns:
                header = tuple("id" if cell == "_id" else cell for cell in cells)
                columns = TITLED if titles and len(cells) != len(PLAIN) else PLAIN
                if sorted(header) == sorted(columns):
                    columns = header
                    continue
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} columns where there should be {len(columns)}: {', '.join(columns)}")
            row = dict(zip(columns, cells, strict=True))
            yield number, row["id"], f"{row.get('title', '')} {row['text']}".strip() if titles else row["text"]
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def _string(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f'"{name}" is missing')
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f'"{name}" is not a string but {type(value).__name__}')
    value.encode("utf-8")  # a lone surrogate raises
    return value
