"""What a job took, added up from the markers of its shards; and the progress line, from those that are finished."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from flax_rerank.jobs.shards import Marker

COUNTED = ("rows", "rejects", "truncated", "tokens", "computed_tokens", "steps")
VERSIONS = ("flax-rerank", "jax", "jaxlib", "flax")

Summary = Mapping[str, Any]


def summarize(markers: Sequence[Marker]) -> Summary:
    """The sums over shards. Seconds are those of all processes that wrote a marker, together: to load the reranker, to
    compile ahead (warmup), and to score, including what was compiled only then."""
    counts = {name: sum(marker[name] for marker in markers) for name in COUNTED}
    seconds = {
        name: round(sum(marker["seconds"][name] for marker in markers), 3) for name in ("load", "warmup", "score")
    }
    return {
        "shards": len(markers),
        **counts,
        "padding_share": 1 - counts["tokens"] / counts["computed_tokens"] if counts["computed_tokens"] else 0.0,
        "shapes": sorted(map(list, {(*shape,) for marker in markers for shape in marker["shapes"]})),
        "seconds": seconds,
        "devices": sorted({marker["devices"] for marker in markers}),
        "versions": {name: version(name) for name in VERSIONS},
    }


def in_words(summary: Summary) -> str:
    """A summary as one line."""
    seconds = summary["seconds"]
    rate, loading = 1 / max(seconds["score"], 1e-9), seconds["load"] + seconds["warmup"]
    return (
        f"{_count(summary['rows'], 'pair')} in {seconds['score']:.1f} s after {loading:.1f} s of loading: "
        f"{summary['rows'] * rate:.1f} pairs/s, {summary['tokens'] * rate:.0f} tokens/s, "
        f"{summary['padding_share']:.1%} padding, {summary['truncated']} truncated, {summary['rejects']} rejected, "
        f"{_count(len(summary['shapes']), 'shape')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class Progress(tqdm):
    """The progress line: pairs/s, tokens/s, padding and the time that is left."""

    tokens = computed_tokens = 0

    def add(self, rows: int, marker: Marker) -> None:
        """A shard of so many rows is finished."""
        self.tokens += marker["tokens"]
        self.computed_tokens += marker["computed_tokens"]
        if not self.disable:
            rate, padding = self.tokens / self.format_dict["elapsed"], 1 - self.tokens / max(self.computed_tokens, 1)
            self.set_postfix_str(f"{rate:.0f} tokens/s, {padding:.1%} padding", refresh=False)
        self.update(rows)
