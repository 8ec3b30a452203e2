"""How well passages are ranked: test sets, measures, and the comparison of two rankings."""

from flax_rerank.evaluation.compare import Comparison, compare, confidence_interval
from flax_rerank.evaluation.data import EvaluationSet, open_set
from flax_rerank.evaluation.measures import Evaluation, evaluate, measure

__all__ = [
    "Comparison",
    "Evaluation",
    "EvaluationSet",
    "compare",
    "confidence_interval",
    "evaluate",
    "measure",
    "open_set",
]
