"""NanoBEIR's data, as sentence-transformers publishes it: Parquet files with BM25's ranking of each query.

corpus/NanoNQ-00000-of-00001.parquet    _id and text
queries/...                             _id and text
qrels/...                               query-id and corpus-id (one, or a list)
bm25/...                                query-id and corpus-ids, best first
"""

from collections.abc import Iterator
from typing import Any

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.parquet import open_parquet

SUFFIX = ".parquet"


def is_nano(folder: str) -> bool:
    """Whether a folder has the layout."""
    return any(name.endswith(SUFFIX) for name in files.sizes(f"{folder}/bm25"))


def read_nano(
    folder: str, split: str | None, top_k: int
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """The texts of queries and passages, the judgments, and BM25's first passages, with negative ranks as scores.

    Args:
        folder: the folder.
        split: the set, such as NanoNQ; by default the only one.
        top_k: passages of each query.

    Raises:
        ValueError: a column that a file lacks.
        FileNotFoundError: no such set, or several and no split.
    """
    splits = sorted({name.rpartition("-of-")[0].rpartition("-")[0] for name in files.sizes(f"{folder}/bm25")})
    if split is None and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        raise FileNotFoundError(f"{folder} has no set {split!r}: split must be one of {', '.join(splits)}")
    queries = {row["_id"]: row["text"] for row in _rows(folder, "queries", split, ("_id", "text"))}
    passages = {row["_id"]: row["text"] for row in _rows(folder, "corpus", split, ("_id", "text"))}
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(folder, "qrels", split, ("query-id", "corpus-id")):
        docids = row["corpus-id"]
        qrels.setdefault(row["query-id"], {}).update(dict.fromkeys([docids] if isinstance(docids, str) else docids, 1))
    run = {
        row["query-id"]: {docid: -float(rank) for rank, docid in enumerate(row["corpus-ids"][:top_k], start=1)}
        for row in _rows(folder, "bm25", split, ("query-id", "corpus-ids"))
    }
    return queries, passages, qrels, run


def _rows(folder: str, subset: str, split: str, columns: tuple[str, str]) -> Iterator[dict[str, Any]]:
    names = [name for name in files.sizes(f"{folder}/{subset}") if name.startswith(f"{split}-")]
    if not names:
        raise FileNotFoundError(f"no {subset}/{split}-*{SUFFIX} in {folder}")
    for name in names:
        with open_parquet(f"{folder}/{subset}/{name}") as table:
            missing = [column for column in columns if column not in table.schema_arrow.names]
            if missing:
                raise ValueError(f"{folder}/{subset}/{name} has no column {missing[0]!r}")
            yield from table.read(list(columns)).to_pylist()
