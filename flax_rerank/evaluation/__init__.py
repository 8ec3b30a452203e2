"""How well passages are ranked: test sets, measures, and the comparison of two rankings."""

from flax_rerank.evaluation.data import EvaluationSet, open_set
from flax_rerank.evaluation.measures import Evaluation, evaluate, measure

__all__ = ["Evaluation", "EvaluationSet", "evaluate", "measure", "open_set"]
