"""Reading on where the last shard ended, in files that cannot seek to a row."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from flax_rerank.jobs.rows import Shard

T = TypeVar("T")


class Cursor(NamedTuple, Generic[T]):
    """An open file: the number of the row that comes next, and the rows from there on."""

    file: str
    number: int
    rows: Generator[T]


class Cursors(Generic[T]):
    """Keeps the file of the last shard open for the next one. Pickled, it is empty.

    Without it, each shard of a compressed file would decompress all that comes before.
    """

    def __init__(self) -> None:
        self._kept: deque[Cursor[T]] = deque()  # one at most; shared by the threads that read

    def __reduce__(self) -> tuple[type["Cursors[T]"], tuple[()]]:
        return type(self), ()

    def take(self, shard: Shard, start: Callable[[], tuple[int, Generator[T]]]) -> Iterator[T]:
        """The rows of a shard.

        Args:
            shard: the shard.
            start: opens its file: the number of the first row that comes, and the rows from there on.

        Raises:
            ValueError: as `take_all`.
        """
        cursor = self._next()
        if cursor is None or cursor.file != shard.file or cursor.number > shard.first:
            if cursor is not None:
                cursor.rows.close()
            cursor = Cursor(shard.file, *start())
        try:
            for _ in islice(cursor.rows, shard.first - cursor.number):
                pass
            yield from take_all(shard, cursor.rows)
        except BaseException:
            cursor.rows.close()
            raise
        while (other := self._next()) is not None:
            other.rows.close()
        self._kept.append(cursor._replace(number=shard.first + shard.rows))

    def _next(self) -> Cursor[T] | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None


def take_all(shard: Shard, rows: Iterator[T]) -> Iterator[T]:
    """The next rows, as many as the shard has.

    Raises:
        ValueError: the file has fewer rows than it had.
    """
    taken = 0
    for row in islice(rows, shard.rows):
        yield row
        taken += 1
    if taken < shard.rows:
        raise ValueError(f"{shard.file} has fewer rows than when it was cut into shards: it was changed")
