"""The pairs of a job: how many, and how long."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flax_rerank.spec import Spec
from flax_rerank.text.pairs import TokenizedPairs, tokenize

# Jobs are scored in shards of so many rows, and the table of shapes is fitted to a shard.
SHARD_ROWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Workload:
    """Pairs to score.

    Attributes:
        pairs: how many the job has; None if not known.
        describe: their lengths, in words.
        shard: makes one shard of them for a model.
    """

    pairs: int | None
    describe: str
    shard: Callable[[Spec], TokenizedPairs]


def longest(pairs: int | None) -> Workload:
    """Pairs that all have the greatest length that `max_length` allows."""

    def shard(spec: Spec) -> TokenizedPairs:
        return _of_lengths(spec, np.full(_rows(pairs), spec.template(spec.settings).max_tokens), 16)

    return Workload(pairs, "all pairs of the greatest length", shard)


def of_lengths(path: Path, pairs: int | None, query_tokens: int) -> Workload:
    """Pairs with the lengths in tokens that a JSON file holds: a list of them, or an object from length to count.
    Longer ones than `max_length` allows are cut.

    Args:
        pairs: of the job; None for as many as in the file.
        query_tokens: of each pair's query.

    Raises:
        ValueError: the file has another form.
        OSError: the file cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        items = found.items() if isinstance(found, dict) else [(length, 1) for length in found]
        lengths, counts = np.asarray([[int(str(number)) for number in item] for item in items]).T
        if lengths.min() < 1 or counts.min() < 0 or counts.sum() == 0:
            raise ValueError("lengths are at least 1, counts at least 0")
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} is neither a JSON list of lengths nor {{"length": count, ...}}: {error}') from error
    total = int(counts.sum()) if pairs is None else pairs

    def shard(spec: Spec) -> TokenizedPairs:
        drawn = np.random.default_rng(SEED).choice(lengths, _rows(total), p=counts / counts.sum())
        return _of_lengths(spec, drawn, query_tokens)

    return Workload(total, f"lengths of {path.name}", shard)


def of_sample(path: Path, sample: list[tuple[str, str]], pairs: int) -> Workload:
    """As many pairs as the job has, like those of a sample, which is from the file `path`."""

    def shard(spec: Spec) -> TokenizedPairs:
        if not spec.tokenizer.files:
            raise ValueError(
                f"a sample needs the model's tokenizer, and only the config of {spec.name} is known: give "
                "its folder, or the lengths of the pairs (--lengths)"
            )
        tokenized = tokenize(
            sample,
            spec.tokenizer,
            spec.template(spec.settings),
            query_instruction=spec.settings.query_instruction,
            passage_instruction=spec.settings.passage_instruction,
            skip_faulty=True,
        )
        sound = np.setdiff1d(np.arange(len(sample)), list(tokenized.faults))
        if len(sound) == 0:
            raise ValueError(f"no pair of {path} can be scored; pair 0: {tokenized.faults[0]}")
        chosen = np.random.default_rng(SEED).choice(sound, _rows(pairs)) if pairs > len(sound) else sound
        return _pairs(spec, tokenized.query_lengths[chosen], tokenized.passage_lengths[chosen])

    return Workload(pairs, f"lengths of {path.name}", shard)


def _rows(pairs: int | None) -> int:
    return SHARD_ROWS if pairs is None else min(pairs, SHARD_ROWS)


def _of_lengths(spec: Spec, lengths: np.ndarray, query_tokens: int) -> TokenizedPairs:
    """Pairs of these lengths, with all that is around query and passage; longer ones are cut."""
    template = spec.template(spec.settings)
    rest = np.clip(lengths, template.special_tokens, template.max_tokens) - template.special_tokens
    query = np.minimum(rest, query_tokens)
    return _pairs(spec, query, rest - query)


def _pairs(spec: Spec, query_lengths: np.ndarray, passage_lengths: np.ndarray) -> TokenizedPairs:
    """Pairs with so many tokens of query and passage, without their texts, of which no two are equal."""
    index = np.arange(len(query_lengths))
    return TokenizedPairs(
        template=spec.template(spec.settings),
        tokenizer=spec.tokenizer,
        texts=[],
        query_index=index,
        passage_index=index,
        query_lengths=query_lengths.astype(np.int32),
        passage_lengths=passage_lengths.astype(np.int32),
        truncated=np.zeros(len(index), bool),
        faults={},
    )
