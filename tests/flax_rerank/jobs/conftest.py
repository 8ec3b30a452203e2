"""A reranker that costs nothing, and jobs with it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from flax_rerank.batching import Shape
from flax_rerank.jobs.formats import Format
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.sources import JsonlSource
from flax_rerank.rerankers import RerankOutput
from flax_rerank.sharding import make_mesh


class FakeReranker:
    """Scores a pair with the length of its texts; a passage with "fault" is at fault, one with "nan" has no score.

    `on_run` is called with the pairs of each shard.
    """

    dtype = np.dtype(np.float32)
    limit = 100

    def __init__(self, on_run=lambda pairs: None):
        self.mesh = make_mesh(jax.devices()[:1])
        self.on_run = on_run
        self.tables, self.warm = [], []

    def prepare(self, pairs, *, table=None, skip_faulty):
        assert skip_faulty
        faults = {i: "it is at fault" for i, (_, passage) in enumerate(pairs) if "fault" in passage}
        if table is None:
            table = (Shape(8, 16),) if len(faults) < len(pairs) else ()
        else:
            self.tables.append(table)
        call = SimpleNamespace(template=SimpleNamespace(max_tokens=self.limit), most_around=0)
        return SimpleNamespace(pairs=pairs, faults=faults, table=table, call=call)

    def run(self, prepared, *, show_progress_bar):
        assert not show_progress_bar
        self.on_run(prepared.pairs)
        scores = np.asarray([len(query) + len(passage) / 7 for query, passage in prepared.pairs])
        scores[["nan" in passage for _, passage in prepared.pairs]] = np.nan
        scores[list(prepared.faults)] = np.nan
        count = len(scores)
        return RerankOutput(scores, np.full(count, 5, np.int32), np.ones(count, bool), 2, (Shape(8, 16),), 128, 9)

    def warmup(self, prepared):
        self.warm.append(prepared.table)
        return 1.5


@dataclass(frozen=True)
class FakeJob:
    """A job with a fake reranker."""

    job: Job

    def but(self, **changes: Any) -> "FakeJob":
        return replace(self, job=replace(self.job, **changes))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.job.file).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def make_job(tmp_path):
    """`make_job(passages, name=, on_run=, shard_rows=)`: pairs of these passages, in shards of three rows."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def make(passages, *, name="out/scores.jsonl", on_run=lambda pairs: None, shard_rows=3) -> FakeJob:
        pairs = tmp_path / "pairs.jsonl"
        lines = [p if p.startswith("bad") else json.dumps({"query": "q", "passage": p}) for p in passages]
        pairs.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        path = str(tmp_path / name)
        one_file = name.endswith(".jsonl")
        job = Job(
            source=JsonlSource([str(pairs)]),
            format=Format(".jsonl"),
            folder=f"{path}.job" if one_file else path,
            file=path if one_file else None,
            model=str(model),
            load=lambda: FakeReranker(on_run),
            settings={"max_length": 64},
            cache_dir=None,
            shard_rows=shard_rows,
            strict=False,
            warmup=False,
        )
        return FakeJob(job)

    return make
