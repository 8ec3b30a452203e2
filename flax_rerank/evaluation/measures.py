"""Measures of rankings, as trec_eval computes them; by ir-measures (extra `evaluate`)."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flax_rerank.evaluation.data import EvaluationSet
from flax_rerank.evaluation.trec import Qrels, Run

MEASURES = ("nDCG@10", "RR@10")


@dataclass(frozen=True)
class Evaluation:
    """How good a ranking is.

    Attributes:
        mean: each measure's mean over the queries, by the measure's name.
        per_query: each measure's value for each query, by the measure's name and the query's id.
        run: the scores that were evaluated, by the ids of query and passage.
    """

    mean: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    run: Run


def evaluate(
    score: Callable[[list[tuple[str, str]]], Sequence[float]],
    data: EvaluationSet,
    measures: Sequence[str] = MEASURES,
) -> Evaluation:
    """Score the candidates of a test set and measure their ranking.

    Args:
        score: gives the scores of pairs of query and passage, such as a reranker's `compute_score`.
        data: the test set.
        measures: as for `measure`.

    Raises:
        ValueError: another number of scores than of pairs, and as `measure`.
        ImportError: ir-measures is not installed.
    """
    parse_measures(measures)  # before the scores, which can take hours
    return measure(data.run_of(score(data.pairs())), data.qrels, measures)


def measure(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> Evaluation:
    """Measure a ranking.

    As in trec_eval, the highest score comes first, scores are float32, and of equal ones the id that is greater as
    UTF-8 bytes comes first. All judged queries count, as with trec_eval's option -c: one without candidates has 0.

    Args:
        run: scores by the ids of query and passage.
        qrels: how relevant passages are, by the same ids; one without an entry is not relevant.
        measures: names of ir-measures, such as nDCG@10, RR@10, AP, R@100 or P(rel=2)@5.

    Raises:
        ValueError: a measure that does not exist; a score that is not finite; no judged query.
        ImportError: ir-measures is not installed.
    """
    parsed = parse_measures(measures)
    if not qrels:
        raise ValueError("there are no judged queries")
    # The ranks in place of the scores: providers of ir-measures break ties in different ways.
    ranked = {query: _ranks(query, scores) for query, scores in run.items() if scores and query in qrels}
    import ir_measures

    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in parsed}
    names: dict[Any, list[str]] = {}
    for name, kind in parsed.items():
        names.setdefault(kind, []).append(name)
    for found in ir_measures.iter_calc(list(names), qrels, ranked):
        for name in names[found.measure]:
            per_query[name][found.query_id] = float(found.value)
    return Evaluation({name: float(np.mean([*values.values()])) for name, values in per_query.items()}, per_query, run)


def parse_measures(measures: Sequence[str]) -> dict[str, Any]:
    """The measures of ir-measures by their names. Raises as `measure`."""
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError("measures need ir-measures; install flax-rerank[evaluate]") from error
    parsed = {}
    for name in measures:
        try:
            parsed[name] = _parse(name)
            parsed[name].validate_params()
            ir_measures.evaluator([parsed[name]], {"query": {"passage": 1}})
        except (SyntaxError, ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"{name} is not a measure that can be computed here: {error}") from error
    if not parsed:
        raise ValueError("no measures are given")
    return parsed


def _parse(name: str) -> Any:
    """A measure of a name such as R(rel=2)@100. ir-measures' own parser needs what Python 3.14 does not have."""
    import ir_measures

    node = ast.parse(name, mode="eval").body
    parameters, cutoff = {}, None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        cutoff, node = ast.literal_eval(node.right), node.left
    if isinstance(node, ast.Call) and not node.args:
        parameters = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        node = node.func
    kind = getattr(ir_measures, node.id, None) if isinstance(node, ast.Name) else None
    if not isinstance(kind, ir_measures.Measure):
        raise ValueError("ir-measures has none of this name")
    kind = kind(**parameters)
    return kind if cutoff is None else kind @ cutoff


def _ranks(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The negative rank of each passage."""
    values = np.asarray([*scores.values()], np.float32)
    if not np.isfinite(values).all():
        worst = [*scores][int(np.argmin(np.isfinite(values)))]
        raise ValueError(f"the score of passage {worst!r} for query {query!r} is {scores[worst]}")
    order = sorted(zip(values.tolist(), map(str.encode, scores), scores, strict=True), reverse=True)
    return {passage: -float(rank) for rank, (_, _, passage) in enumerate(order, start=1)}
