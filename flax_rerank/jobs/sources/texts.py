"""Queries and corpora: texts by id.

.jsonl  BEIR's objects, {"_id": ..., "title": ..., "text": ...}
.tsv    id and text, or (passages) id, title and text, between tabs, without quoting; the first line decides. A first
        line of these names, "_id" or "id" among them, is a header and can have them in another order.

A passage is its title and its text with a space between, stripped, as in FlagEmbedding's evaluation.
"""

from collections.abc import Iterator
from pathlib import Path

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import LIMITS, Limits, numbered_lines, parse_object, string_in

PLAIN = ("id", "text")
TITLED = ("id", "title", "text")


def read_texts(path: str, *, titles: bool, limits: Limits = LIMITS) -> Iterator[tuple[int, str, str]]:
    """The line (from 1), id and text of each query or passage (with `titles`) in a .jsonl or .tsv (.gz, .zst or not).

    Raises ValueError for another kind of file, or a line at fault, as "path:line: reason".
    """
    stem = path.removesuffix(files.compression_of(path))
    if not stem.endswith((".jsonl", ".tsv")):
        raise ValueError(f"{path}: texts come from .jsonl or .tsv files (also .gz, .zst)")
    columns: tuple[str, ...] = ()
    for number, line in numbered_lines(path, limits):
        try:
            if stem.endswith(".jsonl"):
                row = _read_object(line, titles)
            else:
                cells = line.decode("utf-8").rstrip("\r\n").split("\t")
                if not columns:
                    columns = TITLED if titles and len(cells) != len(PLAIN) else PLAIN
                    header = tuple("id" if cell == "_id" else cell for cell in cells)
                    if sorted(header) == sorted(columns):
                        columns = header
                        continue
                if len(cells) != len(columns):
                    names = ", ".join(columns)
                    raise ValueError(f"the number of columns is {len(cells)}; it must be {len(columns)}: {names}")
                row = dict(zip(columns, cells, strict=True))
            yield number, row["id"], f"{row.get('title', '')} {row['text']}".strip() if titles else row["text"]
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def beir_files(folder: str) -> tuple[str, str]:
    """The queries and the corpus of a BEIR folder (a path or a URL). Raises FileNotFoundError if one is missing."""
    found = files.sizes(folder)
    for name in ("queries.jsonl", "corpus.jsonl"):
        if name not in found:
            raise FileNotFoundError(f"no {name} in {folder}: a BEIR folder has queries.jsonl and corpus.jsonl")
    parent = folder.rstrip("/") if files.is_url(folder) else str(Path(folder))
    return f"{parent}/queries.jsonl", f"{parent}/corpus.jsonl"


def _read_object(line: bytes, titles: bool) -> dict[str, str]:
    record = parse_object(line)
    fields = {"text": "text", "id": "_id"}
    if titles and record.get("title") is not None:
        fields["title"] = "title"
    row = {column: string_in(record, name) for column, name in fields.items()}
    for value in row.values():
        value.encode("utf-8")  # a lone surrogate raises
    return row
