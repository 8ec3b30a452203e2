"""Encoder-only cross-encoders: BERT and XLM-RoBERTa with a classification head of one label."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.attention import Mask, attend
from flax_rerank.models.compression import Compression
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


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an `Encoder`. Fields mean what they mean in Hugging Face's config.json.

    `position_offset` is the row of the position table that the first token takes: 0 for BERT, the padding id plus one
    for XLM-RoBERTa.
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
    position_offset: int

    def __post_init__(self) -> None:
        require_activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def max_length(self) -> int:
        """The longest input in tokens."""
        return self.max_position_embeddings - self.position_offset


class Embeddings(nnx.Module):
    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        self.word = Embed(config.vocab_size, config.hidden_size, ("vocab", "embed"), dtypes)
        self.position = Embed(config.max_position_embeddings, config.hidden_size, (None, "embed"), dtypes)
        self.token_type = Embed(config.type_vocab_size, config.hidden_size, (None, "embed"), dtypes)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtypes)
        self.position_offset = config.position_offset

    def __call__(self, input_ids: jax.Array, token_types: jax.Array) -> jax.Array:
        positions = jnp.arange(input_ids.shape[1])[None] + self.position_offset  # [1, L]
        x = self.word(input_ids).astype(jnp.float32)  # [B, L, D]
        x = x + self.position(positions).astype(jnp.float32)
        x = x + self.token_type(token_types).astype(jnp.float32)
        return self.norm(x)


class SelfAttention(nnx.Module):
    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        width = config.hidden_size
        self.query = Linear(width, width, ("embed", "heads"), dtypes)
        self.key = Linear(width, width, ("embed", "heads"), dtypes)
        self.value = Linear(width, width, ("embed", "heads"), dtypes)
        self.output = Linear(width, width, ("heads", "embed"), dtypes)
        self.heads = config.num_attention_heads

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask) -> jax.Array:
        """Attend from the positions of `x`, [B, L, D], to those of `seen`, [B, M, D]; float32 [B, L, D]."""
        size = x.shape[-1] // self.heads
        query = self.query(x).reshape(*x.shape[:2], self.heads, size)  # [B, L, N, H]
        key = self.key(seen).reshape(*seen.shape[:2], self.heads, size)  # [B, M, N, H]
        value = self.value(seen).reshape(*seen.shape[:2], self.heads, size)  # [B, M, N, H]
        mixed = attend(query, key, value, mask, scale=size**-0.5)  # [B, L, N, H]
        return self.output(mixed.reshape(x.shape), jnp.float32)


class EncoderLayer(nnx.Module):
    """Post-norm: each sublayer's output is added to its input, and the sum is normalised. Sums are float32."""

    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        self.attention = SelfAttention(config, dtypes)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtypes)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size, ("embed", "mlp"), dtypes)
        self.output = Linear(config.intermediate_size, config.hidden_size, ("mlp", "embed"), dtypes)
        self.output_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtypes)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask) -> jax.Array:
        """The next states of the positions of `x`, [B, L, D], which attend to those of `seen`, [B, M, D]."""
        attended = self.attention(x, seen, mask)
        x = self.attention_norm(x.astype(jnp.float32) + attended)
        inner = self.intermediate(x, jnp.float32)  # [B, L, F]
        inner = ACTIVATIONS[self.hidden_act](inner).astype(x.dtype)
        update = self.output(inner, jnp.float32)  # [B, L, D]
        return self.output_norm(x.astype(jnp.float32) + update)


class ClassificationHead(nnx.Module):
    """Dense, tanh and a projection to one label, in float32."""

    def __init__(self, config: EncoderConfig, dtypes: DTypes) -> None:
        dtypes = replace(dtypes, computed=jnp.float32)
        self.dense = Linear(config.hidden_size, config.hidden_size, ("embed", None), dtypes)
        self.out_proj = Linear(config.hidden_size, 1, ("embed", None), dtypes)

    def __call__(self, state: jax.Array) -> jax.Array:
        """Logits, [B, 1], of one state of each row, [B, D]."""
        hidden = jnp.tanh(self.dense(state.astype(jnp.float32)))
        return self.out_proj(hidden)


class Encoder(nnx.Module):
    """BERT (Devlin et al., 2018) or XLM-RoBERTa (Conneau et al., 2019) with a head that scores a pair.

    Padding is on the right. Where the model knows token types, the tokens from `passage_starts` on are
    of type 1, as BERT's tokenizer has it.

    Raises:
        NotImplementedError: a readout other than "dense_tanh" of the first token, after one layer.
    """

    def __init__(self, config: EncoderConfig, readout: Readout, dtypes: DTypes) -> None:
        if readout != Readout("first", "dense_tanh", layers=readout.layers[-1:], heads=(0,)):
            raise NotImplementedError(f"an encoder scores its last layer's first token by dense_tanh, not {readout}")
        self.config = config
        self.readout = readout
        self.dtypes = dtypes
        self.embeddings = Embeddings(config, dtypes)
        self.layers = stack(lambda: EncoderLayer(config, dtypes), config.num_hidden_layers)
        self.head = ClassificationHead(config, dtypes)

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
        if self.config.type_vocab_size > 1:
            token_types = (positions >= passage_starts[:, None]).astype(jnp.int32)
        x = self.embeddings(input_ids, token_types)  # [B, L, D]
        mask = Mask((positions < lengths[:, None])[:, None], lengths=lengths)  # [B, 1, L]
        x = run_stack(self.layers, 0, depth - 1, lambda layer, _, x: layer(x, x, mask), x)
        # The head reads the first token alone.
        first = layer_of(self.layers, depth - 1)(x[:, :1], x, mask)  # [B, 1, D]
        return self.head(first[:, 0])
