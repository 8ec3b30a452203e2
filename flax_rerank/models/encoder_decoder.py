"""T5 (Raffel et al., 2020), whose decoder scores a pair in its first step, as in monoT5 (Nogueira et al., 2020)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.attention import Mask, attend
from flax_rerank.models.compression import Compression
from flax_rerank.models.layers import (
    ACTIVATIONS,
    Embed,
    Linear,
    RMSNorm,
    parameter,
    require_activation,
    run_stack,
    stack,
)
from flax_rerank.models.readout import Readout


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """The shape of an `EncoderDecoder`. Fields mean what they mean in Hugging Face's config.json for other models, and

    Attributes:
        num_hidden_layers: of the encoder; `num_decoder_layers`: of the decoder.
        buckets, longest: distances between tokens have so many biases, and those from `longest` on share one.
        gated_mlp: the feed-forward network multiplies a gate in.
        start_token: the input of the decoder's first step.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_decoder_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    buckets: int
    longest: int
    rms_norm_eps: float
    hidden_act: str
    gated_mlp: bool
    start_token: int

    def __post_init__(self) -> None:
        require_activation(self.hidden_act)

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens: None, since all long distances count alike."""
        return None


def buckets_of(config: EncoderDecoderConfig, length: int) -> np.ndarray:
    """The bias of each token's distance to each other one, int32 [L, L]: those to later ones are the second half."""
    away = np.arange(length)[None] - np.arange(length)[:, None]
    half = config.buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(away), exact).astype(np.float32) / exact
    logarithm = np.log(far) / np.float32(math.log(config.longest / exact)) * (half - exact)
    bucket = np.where(np.abs(away) < exact, np.abs(away), np.minimum(exact + logarithm.astype(np.int32), half - 1))
    return (bucket + half * (away > 0)).astype(np.int32)


class Attention(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, dtypes: DTypes) -> None:
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.query = Linear(width, inner, ("embed", "heads"), dtypes, use_bias=False)
        self.key = Linear(width, inner, ("embed", "heads"), dtypes, use_bias=False)
        self.value = Linear(width, inner, ("embed", "heads"), dtypes, use_bias=False)
        self.output = Linear(inner, width, ("heads", "embed"), dtypes, use_bias=False)
        self.head_dim = config.head_dim

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask, bias: jax.Array | None = None) -> jax.Array:
        """Attend from `x`, [B, L, D], to `seen`, [B, M, D]. Scores are not scaled."""
        query = self.query(x).reshape(*x.shape[:2], -1, self.head_dim)  # [B, L, N, H]
        key = self.key(seen).reshape(*seen.shape[:2], -1, self.head_dim)  # [B, M, N, H]
        value = self.value(seen).reshape(*seen.shape[:2], -1, self.head_dim)  # [B, M, N, H]
        mixed = attend(query, key, value, mask, scale=1.0, bias=bias)  # [B, L, N, H]
        return self.output(mixed.reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, dtypes: DTypes) -> None:
        width, inner = config.hidden_size, config.intermediate_size
        self.intermediate = Linear(width, inner, ("embed", "mlp"), dtypes, use_bias=False)
        if config.gated_mlp:
            self.up = Linear(width, inner, ("embed", "mlp"), dtypes, use_bias=False)
        self.output = Linear(inner, width, ("mlp", "embed"), dtypes, use_bias=False)
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = ACTIVATIONS[self.config.hidden_act](self.intermediate(x))  # [B, L, F]
        return self.output(inner * self.up(x) if self.config.gated_mlp else inner)


class EncoderLayer(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, dtypes: DTypes) -> None:
        self.attention = Attention(config, dtypes)
        self.attention_norm = _norm(config, dtypes)
        self.mlp = MLP(config, dtypes)
        self.mlp_norm = _norm(config, dtypes)

    def __call__(self, x: jax.Array, mask: Mask, bias: jax.Array) -> jax.Array:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, mask, bias)
        return x + self.mlp(self.mlp_norm(x))


class DecoderLayer(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, dtypes: DTypes) -> None:
        self.attention = Attention(config, dtypes)
        self.attention_norm = _norm(config, dtypes)
        self.cross_attention = Attention(config, dtypes)
        self.cross_attention_norm = _norm(config, dtypes)
        self.mlp = MLP(config, dtypes)
        self.mlp_norm = _norm(config, dtypes)

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask) -> jax.Array:
        """The next state of the first token, `x`, [B, 1, D], which sees itself and all of the encoder, `seen`."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, Mask(jnp.ones((1, 1, 1), bool)))
        x = x + self.cross_attention(self.cross_attention_norm(x), seen, mask)
        return x + self.mlp(self.mlp_norm(x))


class EncoderDecoder(nnx.Module):
    """An encoder that reads the pair, and a decoder of which one step is run.

    Padding is on the right. The head reads the rows of two tokens.
    """

    def __init__(self, config: EncoderDecoderConfig, readout: Readout, dtypes: DTypes) -> None:
        self.config = config
        self.readout = readout
        self.dtypes = dtypes
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, ("vocab", "embed"), dtypes)
        self.distances = Embed(config.buckets, config.num_attention_heads, (None, None), dtypes)
        self.layers = stack(lambda: EncoderLayer(config, dtypes), config.num_hidden_layers)
        self.norm = _norm(config, dtypes)
        # In the first step there are no distances: kept for the way back to PyTorch.
        self.decoder_distances = Embed(config.buckets, config.num_attention_heads, (None, None), dtypes)
        self.decoder_layers = stack(lambda: DecoderLayer(config, dtypes), config.num_decoder_layers)
        self.decoder_norm = _norm(config, dtypes)
        if readout.head == "linear":
            self.head = parameter((readout.head_rows, config.hidden_size), (None, "embed"), dtypes)

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
            passage_starts: not used.
            readout: that of the model.
            compression: None.

        Returns:
            float32 [B, 1]: the logarithm of the first token's probability, if it or the second is the answer.

        Raises:
            ValueError: compression, or a readout other than the model's.
        """
        if compression is not None or readout != self.readout:
            raise ValueError(f"an encoder-decoder takes no compression, and its own readout alone, not {readout}")
        config = self.config
        length = input_ids.shape[1]
        real = jnp.arange(length)[None] < lengths[:, None]  # [B, L]
        mask = Mask(real[:, None], lengths=lengths)
        bias = self.distances(jnp.asarray(buckets_of(config, length))).astype(jnp.float32)  # [L, L, N]
        bias = bias.transpose(2, 0, 1)[None]  # [1, N, L, L]
        x = self.embed_tokens(input_ids)  # [B, L, D]
        x = run_stack(
            self.layers, 0, config.num_hidden_layers, lambda layer, _, x: layer(x, mask, bias), x
        )  # [B, L, D]
        seen = self.norm(x)
        start = jnp.full((len(input_ids), 1), config.start_token)
        y = self.embed_tokens(start)  # [B, 1, D]
        depth = config.num_decoder_layers
        y = run_stack(self.decoder_layers, 0, depth, lambda layer, _, y: layer(y, seen, mask), y)
        state = self.decoder_norm(y)[:, 0].astype(jnp.float32)  # [B, D]
        matrix: Any = self.embed_tokens.embedding if readout.head == "tied" else self.head
        rows = matrix[...][np.asarray(readout.rows[0])].astype(jnp.float32)  # [2, D]
        logits = jnp.einsum("bd,td->bt", state, rows) * readout.logit_scale
        return jax.nn.log_softmax(logits, axis=-1)[:, :1]


def _norm(config: EncoderDecoderConfig, dtypes: DTypes) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, 0.0, dtypes)
