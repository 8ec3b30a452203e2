"""What can be set for a job, beside the model and its reranker."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

STANDARD_STREAM = "-"
PATHS = ("run", "queries", "corpus", "beir", "output", "compile_cache")
POSITIVE = ("top_k", "shard_rows", "num_shards", "num_processes", "ray_actors")


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


def resource(text: str) -> tuple[str, float]:
    """Name and amount of a Ray resource, written as NAME=AMOUNT."""
    name, _, amount = text.partition("=")
    return name, float(amount)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options of a job; `flax-rerank score --help` explains each. All paths may be URLs that fsspec knows.

    Raises:
        ValueError: a number below 1, or options that contradict each other.
    """

    input: str | Sequence[str] | None = _option(
        None,
        "files of pairs, .jsonl (.gz, .zst) or .parquet; patterns such as 'pairs/*.jsonl'; - for JSON lines on "
        "standard input",
        metavar="FILE",
    )
    query_field: str = _option("query", "field or column of the query", metavar="NAME")
    passage_field: str = _option("passage", "field or column of the passage", metavar="NAME")
    run: str | None = _option(
        None, 'a TREC run to rerank, lines of "qid Q0 docid rank score tag", instead of input', metavar="FILE"
    )
    queries: str | None = _option(None, "the texts of the run's queries, .jsonl (BEIR) or .tsv", metavar="FILE")
    corpus: str | None = _option(None, "the texts of the run's passages, .jsonl (BEIR) or .tsv", metavar="FILE")
    beir: str | None = _option(None, "a BEIR folder, instead of queries and corpus", metavar="DIR")
    top_k: int = _option(100, "passages to rerank for each query of the run", metavar="N")

    output: str = field(
        metadata={
            "help": 'a .jsonl (.gz, .zst), .parquet or .trec file: the input with "score" (with several cutoff layers '
            '"score_8", ...); any other name: a folder of parts, which several processes can write; - for standard '
            "output",
        }
    )
    format: Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "trec"] | None = _option(
        None, "of the parts in a folder, or of standard output"
    )
    tag: str = _option("flax-rerank", "the name of the TREC run that is written", metavar="NAME")
    overwrite: bool = _option(False, "start anew, even if the output exists")

    shard_rows: int = _option(10_000, "rows that are read and written at a time", metavar="N")
    strict: bool = _option(False, "stop at the first row that cannot be scored; by default it goes to the rejects")
    warmup: bool = _option(False, "compile all shapes before the first shard")
    compile_cache: str | None = _option(
        None, "a folder that keeps compiled programs for the next start", metavar="DIR"
    )
    show_progress_bar: bool | None = _option(
        None, "show no progress bars; by default they are shown on a terminal", flag="--no-progress"
    )

    num_shards: int | None = _option(None, "processes, started by hand, that share the job", metavar="N")
    shard_index: int | None = _option(None, "which of them this process is, from 0", metavar="I")
    distributed: bool = _option(
        False, "share the job by jax.distributed; by default, if JAX finds that this process is one of a cluster"
    )
    coordinator: str | None = _option(
        None, "address of process 0 for jax.distributed, where JAX cannot find it", metavar="HOST:PORT"
    )
    num_processes: int | None = _option(None, "number of processes, with coordinator", metavar="N")
    process_id: int | None = _option(None, "which of them this process is, with coordinator", metavar="I")

    engine: Literal["local", "ray"] = _option("local", "what runs the shards")
    ray_address: str | None = _option(
        None, 'address of a Ray cluster, "auto" for the one of this machine', metavar="ADDRESS"
    )
    ray_actors: int = _option(1, "rerankers on the Ray cluster", metavar="N")
    ray_resources: Mapping[str, float] | Sequence[tuple[str, float]] = _option(
        (), "of each Ray actor, such as CPU=4, GPU=1 or TPU=4", metavar="R=N", parse=resource
    )

    def __post_init__(self) -> None:
        for name in PATHS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self._check_input()
        self._check_processes()

    @property
    def inputs(self) -> list[str]:
        """The files and patterns of `input`; [] for a run."""
        if self.input is None:
            return []
        paths = [self.input] if isinstance(self.input, str | os.PathLike) else self.input
        return [os.fspath(path) for path in paths]

    def _check_input(self) -> None:
        if (self.input is None) == (self.run is None):
            raise ValueError("give input (pairs) or run (a TREC run to rerank), and not both")
        texts = [value is not None for value in (self.queries, self.corpus)]
        if self.run is None and (any(texts) or self.beir is not None):
            raise ValueError("queries, corpus and beir belong to a run")
        if self.run is not None and (any(texts) != all(texts) or any(texts) == (self.beir is not None)):
            raise ValueError("a run needs its texts: give queries and corpus, or beir")
        if STANDARD_STREAM in self.inputs and len(self.inputs) > 1:
            raise ValueError("standard input comes alone, without other files")

    def _check_processes(self) -> None:
        by_hand = (self.num_shards, self.shard_index) != (None, None)
        by_jax = self.distributed or (self.coordinator, self.num_processes, self.process_id) != (None, None, None)
        if self.engine == "ray" and (by_hand or by_jax):
            raise ValueError("Ray deals out the shards: give no num_shards and no distributed with engine ray")
        if by_hand and by_jax:
            raise ValueError("give num_shards and shard_index, or distributed, and not both")
        # Without one of the two, no number is in the range.
        if by_hand and self.shard_index not in range(self.num_shards or 0):
            raise ValueError("num_shards and shard_index go together, with shard_index from 0 to num_shards - 1")
