"""The options of a job, apart from the model and its reranker."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from flax_rerank.jobs.sources.records import Limits

STANDARD_STREAM = "-"
PATHS = ("run", "queries", "corpus", "beir", "output")
POSITIVE = ("top_k", "max_line_bytes", "max_text_chars", "shard_rows", "num_shards", "num_processes", "ray_actors")


def _option(text: str, default: Any = None, metavar: str | None = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar, **more})


def resource(text: str) -> tuple[str, float]:
    """Name and amount of a Ray resource, written as NAME=AMOUNT."""
    name, _, amount = text.partition("=")
    return name, float(amount)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options of a job; `flax-rerank score --help` explains each. All paths may be URLs that fsspec knows.

    Raises ValueError for a number below 1, or options that contradict each other.
    """

    input: str | Sequence[str] | None = _option(
        "files of pairs, .jsonl (.gz, .zst) or .parquet; patterns such as 'pairs/*.jsonl'; - for JSON lines on "
        "standard input",
        metavar="FILE",
    )
    query_field: str = _option("field or column of the query", "query", "NAME")
    passage_field: str = _option("field or column of the passage", "passage", "NAME")
    run: str | None = _option(
        'a TREC run to rerank, lines of "qid Q0 docid rank score tag", instead of input', metavar="FILE"
    )
    queries: str | None = _option("the texts of the run's queries, .jsonl (BEIR) or .tsv", metavar="FILE")
    corpus: str | None = _option("the texts of the run's passages, .jsonl (BEIR) or .tsv", metavar="FILE")
    beir: str | None = _option("a BEIR folder, instead of queries and corpus", metavar="DIR")
    top_k: int = _option("passages to rerank for each query of the run", 100, "N")
    max_line_bytes: int = _option(
        "bytes of the longest line of an input; longer ones are rejected", Limits.line_bytes, "N"
    )
    max_text_chars: int = _option(
        "characters of the longest query or passage; longer ones are rejected", Limits.text_chars, "N"
    )

    output: str = _option(
        'a .jsonl (.gz, .zst), .parquet or .trec file: the input with "score" (with several cutoff layers "score_8", '
        "...); any other name: a folder of parts, which several processes can write; - for standard output",
        MISSING,
    )
    format: Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "trec"] | None = _option(
        "of the parts in a folder, or of standard output"
    )
    tag: str = _option("the name of the TREC run that is written", "flax-rerank", "NAME")
    overwrite: bool = _option("start over, even if the output exists", False)

    shard_rows: int = _option("rows that are read and written at a time", 10_000, "N")
    strict: bool = _option("stop at the first row that cannot be scored; by default it goes to the rejects", False)
    warmup: bool = _option("compile all shapes before the first shard; later shards need no others", False)
    show_progress_bar: bool | None = _option(
        "show no progress bars; by default they are shown on a terminal", flag="--no-progress"
    )

    num_shards: int | None = _option("processes, started by hand, that share the job", metavar="N")
    shard_index: int | None = _option("which of them this process is, from 0", metavar="I")
    distributed: bool = _option(
        "share the job by jax.distributed; by default, if JAX finds that this process is one of a cluster", False
    )
    coordinator: str | None = _option(
        "address of process 0 for jax.distributed, where JAX cannot find it", metavar="HOST:PORT"
    )
    num_processes: int | None = _option("number of processes, with coordinator", metavar="N")
    process_id: int | None = _option("which of them this process is, with coordinator", metavar="I")

    engine: Literal["local", "ray"] = _option("what runs the shards", "local")
    ray_address: str | None = _option(
        'address of a Ray cluster, "auto" for the one of this machine', metavar="ADDRESS"
    )
    ray_actors: int = _option("rerankers on the Ray cluster", 1, "N")
    ray_resources: Mapping[str, float] | Sequence[tuple[str, float]] = _option(
        "of each Ray actor, such as CPU=4, GPU=1 or TPU=4", (), "R=N", parse=resource
    )

    def __post_init__(self) -> None:
        for name in PATHS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        texts = (self.queries is not None) + (self.corpus is not None) + 2 * (self.beir is not None)
        by_hand = (self.num_shards, self.shard_index) != (None, None)
        by_jax = self.distributed or (self.coordinator, self.num_processes, self.process_id) != (None, None, None)
        if (self.input is None) == (self.run is None):
            raise ValueError("give input (pairs) or run (a TREC run to rerank), and not both")
        if self.run is None and texts > 0:
            raise ValueError("queries, corpus and beir belong to a run")
        if self.run is not None and texts != 2:
            raise ValueError("a run needs its texts: give queries and corpus, or beir")
        if STANDARD_STREAM in self.inputs and len(self.inputs) > 1:
            raise ValueError("standard input (-) cannot be combined with other files")
        if self.engine == "ray" and (by_hand or by_jax):
            raise ValueError("Ray distributes the shards: leave out num_shards and distributed with engine ray")
        if by_hand and by_jax:
            raise ValueError("give num_shards and shard_index, or distributed, and not both")
        if by_hand and self.shard_index not in range(self.num_shards or 0):  # either can be None
            raise ValueError("num_shards and shard_index go together, with shard_index from 0 to num_shards - 1")

    @property
    def inputs(self) -> list[str]:
        """The files and patterns of `input`; [] for a run."""
        given = [self.input] if isinstance(self.input, str | os.PathLike) else self.input or []
        return [os.fspath(path) for path in given]
