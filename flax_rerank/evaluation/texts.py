"""Texts by id, in memory."""

from collections.abc import Container

from flax_rerank.jobs.sources.texts import read_texts


def texts_by_id(path: str, *, titles: bool, wanted: Container[str] | None = None) -> dict[str, str]:
    """The texts of queries or (with `titles`) passages.

    Args:
        path: .jsonl (BEIR) or .tsv (.gz, .zst or neither).
        titles: put a passage's title before its text.
        wanted: the ids to keep; by default all.

    Raises:
        ValueError: a line at fault, as "path:line: reason", also one whose id has a text already.
    """
    texts: dict[str, str] = {}
    for line, name, text in read_texts(path, titles=titles):
        if wanted is None or name in wanted:
            if name in texts:
                raise ValueError(f"{path}:{line}: {name!r} has a text already, in an earlier line")
            texts[name] = text
    return texts
