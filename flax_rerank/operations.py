"""How many operations it takes to score a pair: counted from the sizes in a model's config, without tracing.

The matrix products of the layers are counted. Heads multiply one token of a row; norms, activations and compression
are element-wise: all of them together are less than a thousandth. Embeddings of distances (DeBERTa) are projected once
for all rows of a step, which is not counted either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flax_rerank.models.decoder import DecoderConfig
from flax_rerank.models.encoder import EncoderConfig
from flax_rerank.models.encoder_decoder import EncoderDecoderConfig
from flax_rerank.models.readout import Readout

# (layer, new length): before this layer, counted from 0, the tokens of a row are compressed to so many.
Compressed = Sequence[tuple[int, int]]
# From a length, whether attention is causal, and a window (0 for none): how many scores each head computes.
CountScores = Callable[[int, bool, int], int]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model's layers.

    Attributes:
        layers: how many there are.
        hidden: D, numbers in the state of a token.
        heads, kv_heads, head_dim: N, K and H.
        intermediate: F, numbers inside of the feed-forward network.
        mlp_matrices: 2, or 3 where a gate is multiplied in.
        causal: no token attends to a later one.
        windows: for each layer how many tokens back it attends to, itself included, and as many ahead if not causal;
            0 for all.
        distances: queries and keys are multiplied with embeddings of all distances.
        whole: the head reads all tokens, not one.
        decoder_layers: of the layers, how many are last and compute one token, which attends to all others.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp_matrices: int
    causal: bool
    windows: tuple[int, ...]
    distances: bool = False
    whole: bool = False
    decoder_layers: int = 0

    @property
    def key_value_weights(self) -> int:
        """Entries of a layer's matrices that make keys and values."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def other_weights(self) -> int:
        """Entries of a layer's other matrices: queries, attention's output, and the feed-forward network."""
        return self.hidden * (2 * self.heads * self.head_dim + self.mlp_matrices * self.intermediate)


class Pass(NamedTuple):
    """One layer as it is run for a row: `length` tokens are attended to, by `outputs` of them."""

    length: int
    outputs: int
    window: int


@dataclass(frozen=True)
class Work:
    """What the matrix products of one row take.

    Attributes:
        operations: multiplications and additions.
        weights: entries of the matrices; all rows of a step share them.
        activations: numbers that the products read and write, but for attention scores.
        scores: attention scores.
    """

    operations: int
    weights: int
    activations: int
    scores: int


def sizes_of(config: EncoderConfig | DecoderConfig | EncoderDecoderConfig, readout: Readout) -> Sizes:
    """The sizes of the layers that a config describes, where a readout reads them."""
    layers, hidden, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    everything = (0,) * layers
    if isinstance(config, DecoderConfig):
        keys, windows = (config.num_key_value_heads, config.head_dim), config.sliding_windows or everything
        sizes = Sizes(layers, hidden, heads, *keys, config.intermediate_size, 3, config.causal, windows)
    elif isinstance(config, EncoderDecoderConfig):  # what one token of the decoder computes for itself is not counted
        total, matrices = layers + config.num_decoder_layers, 3 if config.gated_mlp else 2
        of_layer = (heads, heads, config.head_dim, config.intermediate_size, matrices, False)
        sizes = Sizes(total, hidden, *of_layer, (0,) * total, decoder_layers=config.num_decoder_layers)
    else:
        matrices, of_head = 3 if config.gated_mlp else 2, hidden // heads
        of_layer = (heads, heads, of_head, config.intermediate_size, matrices, False)
        sizes = Sizes(layers, hidden, *of_layer, everything, config.distances is not None)
    return replace(sizes, whole=readout.position in ("mean", "markers"))


def visible_scores(length: int, causal: bool, window: int) -> int:
    """Attention scores that a mask leaves: what an ideal kernel computes."""
    window = min(window or length, length)
    one_side = window * (window + 1) // 2 + (length - window) * window
    return one_side if causal else 2 * one_side - length


def passes(sizes: Sizes, length: int, layers: int | None = None, compressed: Compressed = ()) -> Iterator[Pass]:
    """The layers that are run for a row of `length` tokens. Of the last one only the scored token's output is needed.

    Args:
        layers: how many are run; None for all.
    """
    layers = sizes.layers if layers is None else layers
    new_lengths = dict(compressed)
    alone = max(sizes.decoder_layers, not sizes.whole)  # of so many layers at the end, one token
    for layer in range(layers):
        length = new_lengths.get(layer, length)
        yield Pass(length, length if layer < layers - alone else 1, sizes.windows[layer])


def count_work(
    sizes: Sizes,
    length: int,
    layers: int | None = None,
    compressed: Compressed = (),
    count_scores: CountScores = visible_scores,
    before: int = 0,
) -> Work:
    """The work of the layers for one row, a pair of `length` tokens.

    Args:
        layers: how many are run; None for all.
        compressed: where the row becomes shorter.
        count_scores: how attention is computed.
        before: tokens of a prefix that are attended to, and computed elsewhere.
    """
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    operations = weights = activations = scores = 0
    for each in passes(sizes, length, layers, compressed):
        seen = each.length if each.outputs == 1 else count_scores(each.length, sizes.causal, each.window)
        seen += each.outputs * before
        products = sizes.distances * queries * (each.length + each.outputs) * (2 * each.length - 1)
        products += sizes.key_value_weights * each.length + sizes.other_weights * each.outputs + 2 * queries * seen
        operations += 2 * products
        weights += sizes.key_value_weights + sizes.other_weights
        # Each product reads its input and writes its output: keys and values; queries, scores, their product with the
        # values, and attention's output; the feed-forward network.
        activations += 2 * each.length * (sizes.hidden + 2 * keys)
        activations += each.outputs * (2 * sizes.hidden + 4 * queries)
        activations += each.outputs * sizes.mlp_matrices * (sizes.hidden + sizes.intermediate)
        scores += sizes.heads * seen
    return Work(operations, weights, activations, scores)


def compress_pair(length: int, passage: int, layers: Sequence[int], ratio: int) -> Compressed:
    """Where a pair's row becomes shorter, and to how many tokens.

    Args:
        length: tokens of the pair.
        passage: how many of them are its passage's.
        layers: those before which each `ratio` tokens of the passage become one.
    """
    compressed = []
    for layer in layers:
        shorter = -(-passage // ratio)
        length, passage = length - passage + shorter, shorter
        compressed.append((layer, length))
    return compressed
