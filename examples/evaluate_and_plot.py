"""Compare a reranker with BM25, and draw what shorter inputs cost and save.

python examples/evaluate_and_plot.py MODEL sweep.png
"""

import sys
from pathlib import Path

from flax_rerank import FlaxAutoReranker
from flax_rerank.evaluation import compare, evaluate, measure, open_set
from flax_rerank.evaluation.plot import plot_sweep
from flax_rerank.evaluation.sweep import label, sweep

MEASURE = "nDCG@10"


def main(model: str, picture: str) -> None:
    data = open_set(Path(__file__).parent / "evaluation")
    first = measure(data.first_stage, data.qrels, [MEASURE])
    reranker = FlaxAutoReranker.from_finetuned(model)
    ours = evaluate(reranker.compute_score, data, [MEASURE])
    found = compare(ours, first, MEASURE)
    print(f"BM25 {first.mean[MEASURE]:.4f}, {model} {ours.mean[MEASURE]:.4f}, p = {found.p_value:.2g}")

    points = list(sweep(model, data, {"max_length": [32, 64]}, [MEASURE]))
    for point in points:
        print(f"{label(point.settings)}: {point.mean[MEASURE]:.4f}, {point.pairs_per_second:.0f} pairs/s")
    plot_sweep(points, MEASURE, model, Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
