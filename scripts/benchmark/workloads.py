"""Which pairs are scored, and what a pair costs."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Pair = tuple[str, str]

PASSAGES = 100
SEED = 0


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file of JSON lines with "query" and "passage".

    Raises:
        ValueError: a line that is not such, by its number; a file without pairs.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            pairs.append((row["query"], row["passage"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number} is no JSON object with "query" and "passage": {error}') from error
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


def model_flops(
    config: Mapping[str, Any], init: Mapping[str, Any], tokens: Sequence[int], passage_tokens: Sequence[int]
) -> float:
    """Operations of the matrix products that these scores cannot do without: those of the pairs' own tokens in all
    layers up to the last one asked, of which only one token's output is needed. Padding and vocabulary logits count
    nothing, and neither does what is computed twice.

    Args:
        config: the checkpoint's config.json.
        init: the reranker's arguments: cutoff and compression.
        tokens: of each pair.
        passage_tokens: those of them that belong to its passage.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    decoder = "rms_norm_eps" in config
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    of_output = 2 * hidden * (2 * queries + (3 if decoder else 2) * config["intermediate_size"])
    of_input = 2 * hidden * 2 * keys
    last = max(init.get("cutoff_layers") or [config["num_hidden_layers"]])
    ratio = init.get("compress_ratio", 1)
    compressed = {layer for layer in init.get("compress_layers", (8,)) if layer > 0} if ratio > 1 else set()
    total = 0.0
    for length, passage in zip(tokens, passage_tokens, strict=True):
        for layer in range(last):
            if layer in compressed:
                shorter = -(-passage // ratio)
                length, passage = length - passage + shorter, shorter
            outputs = length if layer < last - 1 else 1
            # Where tokens see no later ones, they see half of all.
            seen = (length + 1) / 2 if decoder and outputs > 1 else length
            total += of_input * length + of_output * outputs + 4 * queries * outputs * seen
    return total
