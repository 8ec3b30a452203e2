"""Lines with their numbers."""

from collections.abc import Iterator

from flax_rerank.jobs import files


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file (.gz, .zst or neither), from 1. Blank ones are counted and left out.

    Raises:
        ValueError: the file has no lines, or only blank ones.
    """
    empty = True
    with files.open_input(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.isspace():
                empty = False
                yield number, line
    if empty:
        raise ValueError(f"{path} holds no rows")
