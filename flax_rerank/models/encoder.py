"""Encoder-only cross-encoders with a norm after each sublayer: BERT and its descendants as one module.

The families differ in switches of `EncoderConfig`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.alibi import linear_biases
from flax_rerank.models.attention import Mask, attend
from flax_rerank.models.compression import Compression
from flax_rerank.models.disentangled import Distances, disentangled_attention
from flax_rerank.models.heads import ClassificationHead, mean_of_tokens
from flax_rerank.models.layers import (
    ACTIVATIONS,
    Embed,
    LayerNorm,
    Linear,
    layer_of,
    require_activation,
    run_stack,
    stack,
)
from flax_rerank.models.readout import Readout
from flax_rerank.models.rotary import RopeScaling, rotary_angles, rotate


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an `Encoder`. Fields mean what they mean in Hugging Face's config.json, and

    Attributes:
        position_offset: the row of the position table that the first token takes: 0 for BERT, the padding id plus one
            for RoBERTa.
        positions: how tokens know where they are: by a table that is added to the embedding, by linear biases of the
            attention scores, by rotated heads, or by `distances`.
        embedding_size: of the embeddings, which are then projected; None where it is the hidden size.
        segments: the passage's tokens are of type 1. All are of type 0 where not, or where there is one type.
        gated_mlp: the feed-forward network multiplies a gate in, and its first product has no bias.
        distances: of disentangled attention.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    position_offset: int = 0
    positions: Literal["table", "alibi", "rotary", "distances"] = "table"
    embedding_size: int | None = None
    segments: bool = True
    gated_mlp: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    distances: Distances | None = None

    def __post_init__(self) -> None:
        require_activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens; None where all long distances count alike."""
        return None if self.positions == "distances" else self.max_position_embeddings - self.position_offset


class Positions(NamedTuple):
    """What a layer needs to know of positions: the cosine and the sine of the rotary angles, float32 [1, L, 1, H / 2],
    or the states of distances, [2B, D]."""

    angles: tuple[jax.Array, jax.Array] | None = None
    states: jax.Array | None = None


class Embeddings(nnx.Module):
    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        size = config.embedding_size or config.hidden_size
        self.word = Embed(config.vocab_size, size, ("vocab", "embed"), dtypes)
        if config.positions == "table":
            self.position = Embed(config.max_position_embeddings, size, (None, "embed"), dtypes)
        if config.type_vocab_size > 0:
            self.token_type = Embed(config.type_vocab_size, size, (None, "embed"), dtypes)
        self.norm = LayerNorm(size, config.layer_norm_eps, dtypes)
        if config.embedding_size is not None:
            self.project = Linear(size, config.hidden_size, (None, "embed"), dtypes)
        self.config = config

    def __call__(self, input_ids: jax.Array, token_types: jax.Array) -> jax.Array:
        x = self.word(input_ids).astype(jnp.float32)  # [B, L, D]
        if self.config.positions == "table":
            positions = jnp.arange(input_ids.shape[1])[None] + self.config.position_offset  # [1, L]
            x = x + self.position(positions).astype(jnp.float32)
        if self.config.type_vocab_size > 0:
            x = x + self.token_type(token_types).astype(jnp.float32)
        x = self.norm(x)
        return x if self.config.embedding_size is None else self.project(x)


class SelfAttention(nnx.Module):
    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        width = config.hidden_size
        self.query = Linear(width, width, ("embed", "heads"), dtypes)
        self.key = Linear(width, width, ("embed", "heads"), dtypes)
        self.value = Linear(width, width, ("embed", "heads"), dtypes)
        self.output = Linear(width, width, ("heads", "embed"), dtypes)
        self.config = config

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask, positions: Positions) -> jax.Array:
        """Attend from the first positions, `x`, [B, L, D], to all, `seen`, [B, M, D]; float32 [B, L, D]."""
        config, length = self.config, x.shape[1]
        heads = config.num_attention_heads
        size = x.shape[-1] // heads
        query = self.query(x).reshape(*x.shape[:2], heads, size)  # [B, L, N, H]
        key = self.key(seen).reshape(*seen.shape[:2], heads, size)  # [B, M, N, H]
        value = self.value(seen).reshape(*seen.shape[:2], heads, size)  # [B, M, N, H]
        if positions.angles is not None:
            query = rotate(query, *(table[:, :length] for table in positions.angles))
            key = rotate(key, *positions.angles)
        if config.distances is not None and positions.states is not None:
            mixed = disentangled_attention(
                query, key, value, mask, distances=config.distances, states=positions.states, to_query=self.query,
                to_key=self.key,
            )  # fmt: skip
        else:
            bias = linear_biases(heads, length, seen.shape[1]) if config.positions == "alibi" else None
            mixed = attend(query, key, value, mask, scale=size**-0.5, bias=bias)  # [B, L, N, H]
        return self.output(mixed.reshape(x.shape), jnp.float32)


class EncoderLayer(nnx.Module):
    """Post-norm: each sublayer's output is added to its input, and the sum is normalised. Sums are float32."""

    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention = SelfAttention(config, dtypes)
        self.attention_norm = LayerNorm(hidden, config.layer_norm_eps, dtypes)
        self.intermediate = Linear(hidden, inner, ("embed", "mlp"), dtypes, use_bias=not config.gated_mlp)
        if config.gated_mlp:
            self.gate = Linear(hidden, inner, ("embed", "mlp"), dtypes, use_bias=False)
        self.output = Linear(inner, hidden, ("mlp", "embed"), dtypes)
        self.output_norm = LayerNorm(hidden, config.layer_norm_eps, dtypes)
        self.config = config

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask, positions: Positions) -> jax.Array:
        """The next states of the first positions, `x`, [B, L, D], which attend to all, `seen`, [B, M, D]."""
        attended = self.attention(x, seen, mask, positions)
        x = self.attention_norm(x.astype(jnp.float32) + attended)
        activate = ACTIVATIONS[self.config.hidden_act]
        inner = self.intermediate(x, jnp.float32)  # [B, L, F]
        inner = inner * activate(self.gate(x, jnp.float32)) if self.config.gated_mlp else activate(inner)
        update = self.output(inner.astype(x.dtype), jnp.float32)  # [B, L, D]
        return self.output_norm(x.astype(jnp.float32) + update)


class Encoder(nnx.Module):
    """BERT (Devlin et al., 2018) or one of its descendants with a head that scores a pair.

    Padding is on the right. Where the model knows token types, the tokens from `passage_starts` on are
    of type 1, as BERT's tokenizer has it.

    Raises:
        NotImplementedError: a readout other than "dense" of the first token or of the mean, after one layer.
    """

    def __init__(self, config: EncoderConfig, readout: Readout, dtypes: DTypes) -> None:
        wanted = Readout(readout.position, "dense", readout.layers[-1:], heads=(0,), dense=readout.dense)
        if readout != wanted or readout.position == "last":
            raise NotImplementedError(
                f"an encoder scores its last layer's first token, or the mean of all, by a dense head, not {readout}"
            )
        self.config = config
        self.readout = readout
        self.dtypes = dtypes
        self.embeddings = Embeddings(config, dtypes)
        self.layers = stack(lambda: EncoderLayer(config, dtypes), config.num_hidden_layers)
        if config.distances is not None:
            self.distances = Embed(2 * config.distances.buckets, config.hidden_size, (None, "embed"), dtypes)
            self.distances_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtypes)
        self.head = ClassificationHead(readout.dense, config.hidden_size, dtypes)

    def __call__(
        self,
        input_ids: jax.Array,
        lengths: jax.Array,
        passage_starts: jax.Array,
        *,
        readout: Readout,
        compression: Compression | None = None,
    ) -> jax.Array:
        """Score pairs.

        Args:
            input_ids: int32 [B, L].
            lengths: int32 [B]; real tokens in each row.
            passage_starts: int32 [B]; where each row's passage begins.
            readout: that of the model.
            compression: None.

        Returns:
            float32 logits, [B, 1].

        Raises:
            ValueError: compression, or a readout other than the model's (as after an earlier layer).
        """
        depth = self.config.num_hidden_layers
        if compression is not None:
            raise ValueError("an encoder cannot compress tokens: compression must be None")
        if readout != self.readout or readout.layers != (depth,):
            raise ValueError(f"an encoder scores after its last layer, {depth}, by its own readout, not by {readout}")
        positions = jnp.arange(input_ids.shape[1])[None]  # [1, L]
        token_types = jnp.zeros_like(input_ids)  # [B, L]
        if self.config.segments and self.config.type_vocab_size > 1:
            token_types = (positions >= passage_starts[:, None]).astype(jnp.int32)
        x = self.embeddings(input_ids, token_types)  # [B, L, D]
        mask = Mask((positions < lengths[:, None])[:, None], lengths=lengths)  # [B, 1, L]
        where = self._positions(lengths, input_ids.shape[1])
        alone = readout.position == "first"  # of the last layer, the head reads the first token alone
        x = run_stack(self.layers, 0, depth - alone, lambda layer, _, x: layer(x, x, mask, where), x)
        if not alone:
            return self.head(mean_of_tokens(x, lengths))
        first = layer_of(self.layers, depth - 1)(x[:, :1], x, mask, where)  # [B, 1, D]
        return self.head(first[:, 0])

    def _positions(self, lengths: jax.Array, length: int) -> Positions:
        config = self.config
        if config.positions == "rotary":
            size = config.hidden_size // config.num_attention_heads
            return Positions(angles=rotary_angles(length, lengths, size, config.rope_theta, config.rope_scaling))
        if config.distances is not None:
            return Positions(states=self.distances_norm(self.distances.embedding[...]))
        return Positions()
