"""Decoder-only rerankers: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2 and MiniCPM as one module.

What the families differ in are switches of `DecoderConfig`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_rerank.models.attention import Mask, attend
from flax_rerank.models.compression import compress
from flax_rerank.models.layers import (
    ACTIVATIONS,
    Embed,
    Linear,
    RMSNorm,
    layer_of,
    require_activation,
    run_stack,
    stack,
)
from flax_rerank.models.rotary import RopeScaling, rotary_angles, rotate


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a `Decoder`. Fields mean what they mean in Hugging Face's config.json, and

    Attributes:
        query_key_value_bias, attention_output_bias, mlp_bias: which projections have a bias.
        qk_norm: query and key heads are normalised (Qwen3).
        norm_offset: added to the weight of every norm (1 in Gemma).
        sandwich_norms: the output of each sublayer is normalised too (Gemma 2).
        embedding_scale, residual_scale: factors of the embeddings and of what each sublayer adds.
        query_scale: factor of the attention scores.
        attention_softcap, final_softcap: bounds of attention scores and logits; None for none.
        sliding_windows: for each layer how many positions back it sees, itself included; 0 for all.
        tied_head: the head is the row `score_token` of the embeddings.
        head_layers: the layers after which there is a head, counted from 1; the last layer alone for a
            token-logit head.
        head_per_layer: each of them has a head of its own.
        logit_scale: factor of the logits.
        score_token: the row of a vocabulary-sized head that is the score; None where heads have one row.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    query_scale: float
    head_layers: tuple[int, ...]
    head_per_layer: bool = False
    tied_head: bool = False
    score_token: int | None = None
    query_key_value_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    logit_scale: float = 1.0
    sliding_windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_activation(self.hidden_act)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        # What JSON makes of tuples and dataclasses, when a config comes back from a checkpoint.
        object.__setattr__(self, "head_layers", tuple(self.head_layers))
        object.__setattr__(self, "sliding_windows", tuple(self.sliding_windows))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))


Angles = tuple[jax.Array, jax.Array]


class SelfAttention(nnx.Module):
    def __init__(self, config: DecoderConfig) -> None:
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        bias = config.query_key_value_bias
        self.q_proj = Linear(config.hidden_size, queries, ("embed", "heads"), use_bias=bias)
        self.k_proj = Linear(config.hidden_size, keys, ("embed", "kv_heads"), use_bias=bias)
        self.v_proj = Linear(config.hidden_size, keys, ("embed", "kv_heads"), use_bias=bias)
        self.o_proj = Linear(queries, config.hidden_size, ("heads", "embed"), use_bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_offset)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_offset)
        self.config = config

    def __call__(self, x: jax.Array, mask: Mask, angles: Angles, at: jax.Array | None = None) -> jax.Array:
        config = self.config
        query, key, value = (
            project(states).reshape(*states.shape[:-1], -1, config.head_dim)
            for project, states in ((self.q_proj, _pick(x, at)), (self.k_proj, x), (self.v_proj, x))
        )
        if config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, *(_pick(each, at) for each in angles)), rotate(key, *angles)
        mixed = attend(query, key, value, mask, scale=config.query_scale, softcap=config.attention_softcap)
        return self.o_proj(mixed.reshape(*mixed.shape[:2], -1))


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig) -> None:
        size, bias = config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(config.hidden_size, size, ("embed", "mlp"), use_bias=bias)
        self.up_proj = Linear(config.hidden_size, size, ("embed", "mlp"), use_bias=bias)
        self.down_proj = Linear(size, config.hidden_size, ("mlp", "embed"), use_bias=bias)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(ACTIVATIONS[self.hidden_act](self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    def __init__(self, config: DecoderConfig) -> None:
        self.self_attn = SelfAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = _norm(config)
            self.post_feedforward_layernorm = _norm(config)
        self.config = config

    def __call__(self, x: jax.Array, mask: Mask, angles: Angles, at: jax.Array | None = None) -> jax.Array:
        """The next states of all positions; or of one in each row, which is `at`, int32 [B], and has its own mask."""
        attended = self.self_attn(self.input_layernorm(x), mask, angles, at)
        x = _pick(x, at)
        if not self.config.sandwich_norms:
            x = self._add(x, attended)
            return self._add(x, self.mlp(self.post_attention_layernorm(x)))
        x = self._add(x, self.post_attention_layernorm(attended))
        return self._add(x, self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))))

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        if self.config.residual_scale == 1.0:
            return x + update
        return (x.astype(jnp.float32) + update.astype(jnp.float32) * self.config.residual_scale).astype(x.dtype)


class Decoder(nnx.Module):
    """A causal transformer that scores the last token of each row, after one or several of its layers.

    Padding is on the right: under a causal mask no real token sees it, and rotary positions are relative.
    """

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, ("vocab", "embed"))
        self.layers = stack(lambda: DecoderLayer(config), config.num_hidden_layers)
        self.norm = _norm(config)
        if not config.tied_head:
            heads = len(config.head_layers) if config.head_per_layer else 1
            self.head = nnx.Param(jnp.zeros((heads, config.hidden_size)), axes=(None, "embed"))

    def __call__(
        self,
        input_ids: jax.Array,
        lengths: jax.Array,
        passage_starts: jax.Array,
        *,
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        compressed: tuple[tuple[int, int], ...] = (),
        ratio: int = 1,
        suffix_length: int = 0,
        position_multiple: int = 1,
    ) -> jax.Array:
        """Score pairs. Nothing is computed beyond the last of `layers`.

        Args:
            input_ids: int32 [B, L].
            lengths: int32 [B]; real tokens in each row.
            passage_starts: int32 [B]; where each row's passage begins.
            layers: ascending; the layers (counted from 1) after which to score.
            heads: the head to score each of them with.
            compressed: (layer, new length) for each layer before which passages are compressed; ascending.
            ratio: passage tokens that become one at each of these.
            suffix_length: tokens after the passage.
            position_multiple: the last token's position is one less than a multiple of this. Attention sees no
                difference between positions that are all shifted; the rounding of the angles does.

        Returns:
            float32 logits, [B, len(layers)].
        """
        config = self.config
        x = self.embed_tokens(input_ids)
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
        states = jnp.zeros((len(layers), x.shape[0], x.shape[-1]), x.dtype)
        if layers[0] == 0:
            states = states.at[0].set(_pick(x, lengths - 1)[:, 0])
        start = 0
        for stop, new_length in (
            *((at, size) for at, size in compressed if 0 < at < layers[-1]),
            (layers[-1], None),
        ):
            x, states = self._run(x, states, lengths, start, stop, layers, position_multiple)
            if new_length is not None:
                x, lengths = compress(
                    x,
                    lengths,
                    passage_starts,
                    ratio=ratio,
                    suffix_length=suffix_length,
                    new_length=new_length,
                )
            start = stop
        return self._logits(states, heads)

    def _run(
        self,
        x: jax.Array,
        states: jax.Array,
        lengths: jax.Array,
        start: int,
        stop: int,
        layers: tuple[int, ...],
        position_multiple: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Run the layers [start, stop); after those that are asked for, keep the state of each row's last token.

        Of the last of `layers` nothing else is computed.
        """
        if start == stop:
            return x, states
        config = self.config
        length = x.shape[1]
        positions = jnp.arange(length)[None]
        if position_multiple > 1:
            positions = positions + (-lengths % position_multiple)[:, None]
        angles = rotary_angles(positions, lengths, config.head_dim, config.rope_theta, config.rope_scaling)
        back = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        causal = (back >= 0)[None]
        windows = np.asarray(config.sliding_windows or (0,) * config.num_hidden_layers)
        windows = np.where((windows == 0) | (windows >= length), length, windows)
        # States that nobody asks for go where the last ones will be.
        slots = np.full(config.num_hidden_layers + 1, len(layers) - 1)
        slots[list(layers)] = np.arange(len(layers))
        last = lengths - 1

        def step(layer: DecoderLayer, index: jax.Array, carry: Any) -> Any:
            x, states = carry
            mask = Mask(causal, causal=True)
            if (windows[start:stop] < length).any():
                window = jnp.asarray(windows)[index]
                kinds = tuple(np.unique(windows[start:stop]).tolist())
                mask = Mask(causal & (back < window)[None], causal=True, window=window, windows=kinds)
            x = layer(x, mask, angles)
            slot = jnp.asarray(slots)[index + 1]
            return x, jax.lax.dynamic_update_index_in_dim(states, _pick(x, last)[:, 0], slot, 0)

        if stop < layers[-1]:
            return run_stack(self.layers, start, stop, step, (x, states))
        x, states = run_stack(self.layers, start, stop - 1, step, (x, states))
        back_from_last = last[:, None] - jnp.arange(length)[None]
        mask = Mask(((back_from_last >= 0) & (back_from_last < windows[stop - 1]))[:, None])
        x = layer_of(self.layers, stop - 1)(x, mask, angles, last)
        return x, states.at[-1].set(x[:, 0])

    def _logits(self, states: jax.Array, heads: tuple[int, ...]) -> jax.Array:
        config = self.config
        states = self.norm(states).astype(jnp.float32)
        if config.tied_head:
            rows = self.embed_tokens.embedding[...][config.score_token][None].astype(jnp.float32)
        else:
            rows = self.head[...].astype(jnp.float32)
        logits = jnp.einsum("kbd,kd->bk", states, rows[np.asarray(heads)]) * config.logit_scale
        if config.final_softcap is not None:
            logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
        return logits


def _norm(config: DecoderConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)


def _pick(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """One position of each row, [B, 1, ...]; all where `at` is None."""
    return x if at is None else jnp.take_along_axis(x, at.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)
