"""A reranker that costs nothing."""

from types import SimpleNamespace

import jax
import numpy as np

from flax_rerank.batching import Shape
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
