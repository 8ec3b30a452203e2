"""Fit a calibration to labelled pairs, and measure how far probabilities are from what happened."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.calibration.curve import METHODS, Calibration, Method, sigmoid

FOLDS = 5
BINS = 10
TURNED = "of the pairs, those with higher scores are not more often relevant: a calibration would reverse the ranking"


@dataclass(frozen=True)
class Reliability:
    """Probabilities beside what happened, in bins of equal width that are not empty, ascending.

    Attributes:
        error: the expected calibration error (Guo et al. 2017): the mean over all pairs of the distance, in their bin,
            between the mean probability and the relevant share.
        probabilities: the mean probability in each bin.
        relevant: the relevant share of each bin.
        pairs: how many pairs each bin has.
    """

    error: float
    probabilities: tuple[float, ...]
    relevant: tuple[float, ...]
    pairs: tuple[int, ...]


def fit(scores: np.ndarray, relevant: np.ndarray, method: Method = "platt", layer: int | None = None) -> Calibration:
    """Fit a calibration.

    Args:
        scores: float [pairs], the reranker's, not normalised.
        relevant: bool [pairs], which of the pairs are relevant.
        method: platt has two parameters; isotonic follows any rising curve, and needs about a thousand pairs.
        layer: the cutoff layer that the scores are of.

    Raises:
        ValueError: all pairs are relevant or none is; higher scores are not more often relevant.
        ImportError: scipy is not installed.
    """
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError("a calibration is fitted by scipy; install flax-rerank[evaluate]") from error
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    positive, negative = int(relevant.sum()), int((~relevant).sum())
    if not positive or not negative:
        raise ValueError(f"{positive} of the pairs are relevant and {negative} are not; a calibration needs both")
    if method == "isotonic":
        distinct, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
        shares = np.bincount(inverse, relevant) / counts
        levels = optimize.isotonic_regression(shares, weights=counts).x
        if levels[0] == levels[-1]:
            raise ValueError(TURNED)
        # Of a level stretch the ends are enough.
        inner = (levels[1:-1] == levels[:-2]) & (levels[1:-1] == levels[2:])
        kept = np.concatenate([[True], ~inner, [True]])
        points = np.clip(levels[kept], 0.0, 1.0)
        return Calibration(method=method, scores=distinct[kept], probabilities=points, layer=layer)
    # Platt's targets: a little away from 0 and 1, so that pairs which the scores separate have a finite slope.
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    shift, scale = scores.mean(), scores.std() or 1.0
    standard = (scores - shift) / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * standard + line[1]
        slack = sigmoid(logits) - targets
        return float((np.logaddexp(0.0, logits) - targets * logits).mean()), np.array(
            [(slack * standard).mean(), slack.mean()]
        )

    slope, intercept = optimize.minimize(loss, [1.0, np.log(positive / negative)], jac=True, method="BFGS").x
    if slope <= 0:
        raise ValueError(TURNED)
    return Calibration(method=method, slope=slope / scale, intercept=intercept - slope * shift / scale, layer=layer)


def cross_fit(
    scores: np.ndarray, relevant: np.ndarray, queries: Sequence[str], method: Method = "platt"
) -> np.ndarray:
    """The probabilities of pairs by calibrations that did not see their queries: float64 [pairs].

    The queries are dealt to five parts, in the order they come in; each part gets a calibration fitted to the others.

    Raises:
        ValueError: there is only one query; and as `fit`.
    """
    number = {query: place for place, query in enumerate(dict.fromkeys(queries))}
    if len(number) < 2:
        raise ValueError("the pairs are of 1 query; give pairs of several, so that a part can be left out")
    parts = np.array([number[query] % FOLDS for query in queries])
    probabilities = np.empty(len(scores))
    for part in np.unique(parts):
        probabilities[parts == part] = fit(scores[parts != part], relevant[parts != part], method)(
            scores[parts == part]
        )
    return probabilities


def reliability(probabilities: np.ndarray, relevant: np.ndarray, bins: int = BINS) -> Reliability:
    """Compare probabilities with what happened.

    Args:
        probabilities: float [pairs], from 0 to 1.
        relevant: bool [pairs].
        bins: how many, of equal width.
    """
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    found = np.unique(places)
    means = [float(probabilities[places == place].mean()) for place in found]
    shares = [float(relevant[places == place].mean()) for place in found]
    pairs = [int((places == place).sum()) for place in found]
    error = np.average(np.abs(np.subtract(means, shares)), weights=pairs)
    return Reliability(float(error), tuple(means), tuple(shares), tuple(pairs))
