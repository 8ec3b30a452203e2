"""PyTerrier: a transformer for the end of a pipeline."""

import pandas as pd
import pyterrier as pt

from flax_rerank.rerankers import AbsReranker


class FlaxRerankTransformer(pt.Transformer):
    """Gives each row of query and text the reranker's score, and ranks the rows of each query by it.

    As in `bm25 >> pt.text.get_text(dataset, "text") >> FlaxRerankTransformer(reranker)`.
    """

    def __init__(self, reranker: AbsReranker, text_field: str = "text") -> None:
        """A transformer.

        Args:
            reranker: what scores.
            text_field: the column with the passages.
        """
        super().__init__()
        self.reranker = reranker
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The rows with the columns `score` and `rank`, ordered by `qid` and `rank`."""
        pt.validate.columns(inp, includes=["qid", "docno", "query", self.text_field], context=self)
        pairs = list(zip(inp["query"], inp[self.text_field], strict=True))
        scored = inp.assign(score=self.reranker.compute_score(pairs))
        return pt.model.add_ranks(scored).sort_values(["qid", "rank"], ignore_index=True)
