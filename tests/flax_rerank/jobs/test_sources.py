"""What holds for all inputs that cannot seek to a row."""

import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flax_rerank.jobs.sources import open_source


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_at_most_one_file_stays_open(tmp_path, suffix):
    paths = [str(tmp_path / f"{number}{suffix}") for number in range(4)]
    for path in paths:
        if suffix == ".parquet":
            pq.write_table(pa.table({"query": ["q"] * 3, "passage": ["p"] * 3}), path)
        else:
            with gzip.open(path, "wb") as file:
                file.write(b'{"query": "q", "passage": "p"}\n' * 3)
    source = open_source(paths)
    shards = source.shards(2)

    def opened():
        targets = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return [target for target in targets if target in paths]

    rows = 0
    for shard in [*shards, *shards[::-2]]:  # the last ones go back to where a file is open too far
        rows += len(list(source.read(shard)))
        assert len(opened()) <= 1
    half = source.read(shards[0])
    next(half)
    half.close()
    assert opened() == []
    assert rows == 16
