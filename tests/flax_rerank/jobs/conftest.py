"""Jobs with a reranker that costs nothing."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_reranker import FakeReranker

from flax_rerank.jobs.formats import Format
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.sources import JsonlSource


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
