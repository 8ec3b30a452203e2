"""The pairs of a job: how many, and how long."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flax_rerank.spec import Spec
from flax_rerank.text.pairs import TokenizedPairs, tokenize
from flax_rerank.text.prompts import Template
from flax_rerank.text.tokenizer import Tokenizer

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
        template = spec.template(spec.settings)
        return _pairs_of(np.full(_rows(pairs), template.max_tokens), 16, template, spec.tokenizer)

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
        template = spec.template(spec.settings)
        shares = np.sort(np.random.default_rng(SEED).choice(lengths, _rows(total), p=counts / counts.sum()))
        return _pairs_of(np.minimum(shares, template.max_tokens), query_tokens, template, spec.tokenizer)

    return Workload(total, f"lengths of {path.name}", shard)


def of_sample(path: Path, sample: list[tuple[str, str]], pairs: int | None) -> Workload:
    """Pairs like those of a sample.

    Args:
        path: where the sample is from.
        pairs: of the job; None for as many as in the sample.
    """
    total = len(sample) if pairs is None else pairs

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
        chosen = np.random.default_rng(SEED).choice(sound, _rows(total)) if total > len(sound) else sound
        columns = ("query_index", "passage_index", "query_lengths", "passage_lengths", "truncated")
        return replace(tokenized, faults={}, **{name: getattr(tokenized, name)[chosen] for name in columns})

    return Workload(total, f"lengths of {path.name}", shard)


def _rows(pairs: int | None) -> int:
    return SHARD_ROWS if pairs is None else min(pairs, SHARD_ROWS)


def _pairs_of(lengths: np.ndarray, query_tokens: int, template: Template, tokenizer: Tokenizer) -> TokenizedPairs:
    """Pairs without texts whose lengths, with all that is around query and passage, are these."""
    rest = np.maximum(lengths - template.special_tokens, 0).astype(np.int32)
    query = np.minimum(rest, query_tokens).astype(np.int32)
    index = np.arange(len(lengths))
    return TokenizedPairs(
        template=template,
        tokenizer=tokenizer,
        texts=[],
        query_index=index,
        passage_index=index,
        query_lengths=query,
        passage_lengths=rest - query,
        truncated=np.zeros(len(lengths), bool),
        faults={},
    )
