"""Search a corpus with BM25, and rerank what it finds.

python examples/rerank_a_search.py MODEL "Which country borders Chad and Niger?"
"""

import sys
from pathlib import Path

from flax_rerank import FlaxAutoReranker
from flax_rerank.evaluation import open_set
from flax_rerank.evaluation.bm25 import BM25


def main(model: str, query: str) -> None:
    data = open_set(Path(__file__).parent / "evaluation")
    passages = data.corpus()
    index = BM25(passages)
    found = list(index.best(index.scores(query), top_k=20))

    reranker = FlaxAutoReranker.from_finetuned(model)
    ranked = reranker.rank(query, [passages[docid] for docid in found], top_k=5)
    for each in ranked:
        print(f"{each['score']:8.3f}  BM25's {each['corpus_id'] + 1:2}. {each['text'][:80]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
