"""PyTerrier's transformer."""

import pytest

pytest.importorskip("pyterrier", reason="needs python-terrier")

import pandas as pd
import pyterrier as pt

from flax_rerank.integrations.pyterrier import FlaxRerankTransformer


# PyTerrier 1.0 with pandas 3.1
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_rows_are_ranked_within_their_query(search):
    rows = [
        {"qid": qid, "query": search.query, "docno": f"d{place}", "text": text}
        for qid in ("q2", "q1")
        for place, text in enumerate(search.passages)
    ]
    pipeline = FlaxRerankTransformer(search.model) % 2  # the best two of each query
    found = pipeline(pd.DataFrame(rows))
    best = [f"d{place}" for place in search.order[:2]]
    assert found["docno"].tolist() == best * 2
    assert found["qid"].tolist() == ["q1", "q1", "q2", "q2"]
    assert found["rank"].tolist() == [pt.model.FIRST_RANK, pt.model.FIRST_RANK + 1] * 2
    scores = [search.scores[place] for place in search.order[:2]]
    assert found["score"].tolist() == pytest.approx(scores * 2, abs=1e-6)
    empty = pipeline(pd.DataFrame(columns=["qid", "query", "docno", "text"]))
    assert len(empty) == 0
    with pytest.raises(Exception, match="passage"):
        FlaxRerankTransformer(search.model, "passage")(pd.DataFrame(rows))
