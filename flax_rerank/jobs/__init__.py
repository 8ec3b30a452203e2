"""Batch scoring: files cut into shards, outputs that survive a kill, engines that run them."""

from typing import TYPE_CHECKING, Any

from flax_rerank.jobs.options import JobOptions

if TYPE_CHECKING:
    from flax_rerank.jobs.score import score_files

__all__ = ["JobOptions", "score_files"]


def __getattr__(name: str) -> Any:
    if name == "score_files":  # it imports the rerankers, which the parts of this package do without
        from flax_rerank.jobs.score import score_files

        return score_files
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
