"""Which hidden states a model scores, and by which head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flax_rerank.models.heads import DenseHead

TANH = DenseHead("tanh")


@dataclass(frozen=True)
class Readout:
    """Which hidden states are scored, and by which head. Frozen and hashable: a static argument under jit.

    A model has the readout of all its layers; `at` gives that of one call.

    Attributes:
        position: the token of each row whose state is read; the "mean" of the states of all its tokens; or all tokens
            that are `markers`.
        head: "dense" is that of `dense`; "linear" has a matrix of its own; "tied" reads rows of the embedding;
            "projector" makes vectors of the states.
        layers: layers after which there is a score, counted from 1, ascending; 0 is the embedding.
        heads: for each layer, the number of the head that scores it.
        tokens: of a head with a row for each token of the vocabulary, those that are read: one, or two where the
            score is the logit of the first minus that of the second. Empty where a head has one row.
        logit_scale: factor of the logits.
        softcap: bounds each logit by `softcap * tanh(logit / softcap)`; None for no bound.
        dense: a dense layer, an activation and a projection, where the head is of this kind.
        pad_token: "last" is the last token that is not this one, also where a text ends in it (Hugging Face's decoders
            with a classification head); None for the last token, whatever it is.
        markers: the tokens that mark the end of a passage and of the query.

    Raises:
        ValueError: values that do not belong together.
    """

    position: Literal["first", "last", "mean", "markers"]
    head: Literal["dense", "linear", "tied", "projector"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    logit_scale: float = 1.0
    softcap: float | None = None
    dense: DenseHead = TANH
    pad_token: int | None = None
    markers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "tokens", "markers"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.dense, dict):
            object.__setattr__(self, "dense", DenseHead(**self.dense))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must ascend, with at least one")
        if len(self.heads) != len(self.layers):
            raise ValueError(f"heads {list(self.heads)} must name one head for each of the layers {list(self.layers)}")
        if len(self.tokens) > 2:
            raise ValueError(f"tokens {list(self.tokens)}: a score takes one or two, positive and negative")
        if any(self.heads) and (len(self.tokens) == 2 or self.head == "tied"):
            kind = "a tied head" if self.head == "tied" else "a negative token"
            raise ValueError(f"{kind} cannot be combined with a head for each layer (heads {list(self.heads)})")

    @property
    def head_rows(self) -> int:
        """Rows of a "linear" head: one for each head, or one for each of its tokens."""
        return max(max(self.heads) + 1, len(self.tokens))

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the rows that are read, of the head or, if tied, of the embedding: one, or a positive and a
        negative one.

        Raises:
            ValueError: a tied head without a token.
        """
        if self.head == "tied":
            if not self.tokens:
                raise ValueError("a tied head reads rows of the embedding: the readout must name its tokens")
            return (self.tokens,) * len(self.layers)
        if len(self.tokens) == 2:
            return ((0, 1),) * len(self.layers)
        return tuple((head,) for head in self.heads)

    def at(self, layers: Iterable[int], heads: Sequence[int] | None = None) -> "Readout":
        """The readout of a call that scores after some of the layers.

        Args:
            layers: which, in any order.
            heads: the head for each of them in ascending order; by default each layer's own.

        Raises:
            ValueError: no layer, or one without a head.
        """
        asked = list(layers)
        wrong = [layer for layer in asked if layer not in self.layers]
        if wrong or not asked:
            first, last = self.layers[0], self.layers[-1]
            step = self.layers[1] - first if len(self.layers) > 1 else 1
            every = "" if step == 1 else f" in steps of {step}"
            raise ValueError(
                f"cutoff_layers {asked}: the model has scores after layers {first} to {last}{every}"
                + (f", not after {wrong}" if wrong else "; name at least one")
            )
        chosen = tuple(sorted(set(asked)))
        own = dict(zip(self.layers, self.heads, strict=True))
        return replace(
            self, layers=chosen, heads=tuple(own[layer] for layer in chosen) if heads is None else tuple(heads)
        )
