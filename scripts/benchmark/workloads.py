"""Which pairs are scored."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

Pair = tuple[str, str]

PASSAGES = 100
SEED = 0


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file of JSON lines with "query" and "passage".

    Raises:
        ValueError: a line of another form, named by its number; or a file without pairs.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            pairs.append((row["query"], row["passage"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number} is not a JSON object with "query" and "passage": {error}'
            ) from error
    if not pairs:
        raise ValueError(f"{path} holds no pairs")
    return pairs


def interactive_calls(pairs: Sequence[Pair], calls: int, passages: int = PASSAGES) -> list[list[Pair]]:
    """Calls of one query and `passages` passages: its own, and others where it has fewer."""
    by_query: dict[str, list[str]] = {}
    for query, passage in pairs:
        by_query.setdefault(query, []).append(passage)
    rng = random.Random(SEED)
    queries = sorted(by_query, key=lambda query: -len(by_query[query]))[:calls]
    others = [passage for _, passage in pairs]
    chosen = []
    for call in range(calls):
        query = queries[call % len(queries)]
        own = rng.sample(by_query[query], min(passages, len(by_query[query])))
        chosen.append([(query, passage) for passage in own + rng.choices(others, k=passages - len(own))])
    return chosen


def bulk_pairs(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` pairs: a sample of the file's where it has more; where it has fewer, its passages once more with other
    queries."""
    if count <= len(pairs):
        return random.Random(SEED).sample(pairs, count)
    size = len(pairs)
    return [(pairs[(i + i // size * (size // 3 + 1)) % size][0], pairs[i % size][1]) for i in range(count)]
