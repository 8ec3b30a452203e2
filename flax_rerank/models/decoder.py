"""Rerankers with a norm before each sublayer: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, MiniCPM, and encoders of
this kind, such as ModernBERT, as one module.

The families differ in switches of `DecoderConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.attention import Mask, attend
from flax_rerank.models.compression import Compression, compress
from flax_rerank.models.heads import ClassificationHead, mean_of_tokens
from flax_rerank.models.layers import (
    ACTIVATIONS,
    Embed,
    LayerNorm,
    Linear,
    RMSNorm,
    layer_of,
    parameter,
    pick,
    require_activation,
    run_stack,
    stack,
)
from flax_rerank.models.projector import Projector
from flax_rerank.models.readout import Readout
from flax_rerank.models.rotary import RopeScaling, rotary_angles, rotate


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a `Decoder` without its head. Fields mean what they mean in Hugging Face's config.json, and

    Attributes:
        query_key_value_bias, attention_output_bias, mlp_bias: which projections have a bias.
        qk_norm: query and key heads are normalised (Qwen3).
        norm_offset: added to the weight of every norm (1 in Gemma).
        sandwich_norms: the output of each sublayer is normalised too (Gemma 2).
        embedding_scale, residual_scale: factors of the embeddings and of what each sublayer adds.
        query_scale: factor of the attention scores.
        attention_softcap: bound of the attention scores; None for no bound.
        sliding_windows: for each layer how many positions back it sees, itself included; 0 for all.
        causal: no position sees a later one. Without it, windows are as long to either side.
        sliding_rope_theta: base of the rotary angles in layers with a window; None for that of all layers.
        layer_norm: norms subtract the mean (`rms_norm_eps` is the epsilon of these too); `norm_bias`: and add a bias.
        embedding_norm: embeddings are normalised.
        first_norm: there is a norm before the first layer's attention, as before all others.
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
    query_key_value_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_softcap: float | None = None
    sliding_windows: tuple[int, ...] = ()
    causal: bool = True
    sliding_rope_theta: float | None = None
    layer_norm: bool = False
    norm_bias: bool = False
    embedding_norm: bool = False
    first_norm: bool = True

    def __post_init__(self) -> None:
        require_activation(self.hidden_act)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        # What JSON makes of tuples and dataclasses, when a config comes back from a checkpoint.
        object.__setattr__(self, "sliding_windows", tuple(self.sliding_windows))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens; None where the rotary base grows with the input."""
        dynamic = self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"
        return None if dynamic else self.max_position_embeddings


class Angles(NamedTuple):
    """Cosine and sine of the rotary angles, float32 [B or 1, L, 1, H / 2]."""

    cos: jax.Array
    sin: jax.Array


class KeysValues(NamedTuple):
    """What positions are seen by, [..., M, K, H] each."""

    key: jax.Array
    value: jax.Array


class Prefix(NamedTuple):
    """What rows begin with, when it was computed before and once for all of them (`Decoder.keys_values`).

    Attributes:
        seen: keys and values in each layer, [layers, P, S, K, H], padding on the left: a row's own positions follow.
        lengths: int32 [P], real positions of each prefix.
        of_row: int32 [B], the prefix of each row.
    """

    seen: KeysValues
    lengths: jax.Array
    of_row: jax.Array

    def of_rows(self, index: jax.Array | int) -> KeysValues:
        """What each row sees of its prefix in a layer, [B, S, K, H]."""
        return KeysValues(*(each.at[index, self.of_row].get(mode="promise_in_bounds") for each in self.seen))


class SelfAttention(nnx.Module):
    def __init__(self, config: DecoderConfig, dtypes: DTypes) -> None:
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        bias, out_bias = config.query_key_value_bias, config.attention_output_bias
        self.q_proj = Linear(config.hidden_size, queries, ("embed", "heads"), dtypes, use_bias=bias)
        self.k_proj = Linear(config.hidden_size, keys, ("embed", "kv_heads"), dtypes, use_bias=bias)
        self.v_proj = Linear(config.hidden_size, keys, ("embed", "kv_heads"), dtypes, use_bias=bias)
        self.o_proj = Linear(queries, config.hidden_size, ("heads", "embed"), dtypes, use_bias=out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_offset, dtypes)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_offset, dtypes)
        self.config = config

    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        angles: Angles,
        at: jax.Array | None = None,
        before: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Attend from all positions of `x`, [B, L, D], or from one in each row, `at`, to these and those `before`."""
        config = self.config
        query = self._split(self.q_proj(pick(x, at)))  # [B, L or 1, N, H]
        key = self._split(self.k_proj(x))  # [B, L, K, H]
        value = self._split(self.v_proj(x))  # [B, L, K, H]
        if config.qk_norm:
            query = self.q_norm(query)
            key = self.k_norm(key)
        query = rotate(query, pick(angles.cos, at), pick(angles.sin, at))
        key = rotate(key, angles.cos, angles.sin)
        own = KeysValues(key, value)
        if before is not None:
            key, value = (
                jnp.concatenate(parts, axis=1) for parts in zip(before, own, strict=True)
            )  # [B, S + L, K, H]
        mixed = attend(query, key, value, mask, scale=config.query_scale, softcap=config.attention_softcap)
        return self.o_proj(mixed.reshape(*mixed.shape[:2], -1)), own  # [B, L or 1, D]

    def _split(self, x: jax.Array) -> jax.Array:
        """[B, L, N * H] to [B, L, N, H]."""
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, dtypes: DTypes) -> None:
        size, bias = config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(config.hidden_size, size, ("embed", "mlp"), dtypes, use_bias=bias)
        self.up_proj = Linear(config.hidden_size, size, ("embed", "mlp"), dtypes, use_bias=bias)
        self.down_proj = Linear(size, config.hidden_size, ("mlp", "embed"), dtypes, use_bias=bias)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = ACTIVATIONS[self.hidden_act](self.gate_proj(x))  # [B, L, F]
        up = self.up_proj(x)  # [B, L, F]
        return self.down_proj(gate * up)  # [B, L, D]


class DecoderLayer(nnx.Module):
    def __init__(self, config: DecoderConfig, dtypes: DTypes) -> None:
        self.self_attn = SelfAttention(config, dtypes)
        self.mlp = MLP(config, dtypes)
        if config.first_norm:
            self.input_layernorm = _norm(config, dtypes)
        self.post_attention_layernorm = _norm(config, dtypes)
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = _norm(config, dtypes)
            self.post_feedforward_layernorm = _norm(config, dtypes)
        self.config = config

    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        angles: Angles,
        at: jax.Array | None = None,
        normed: jax.Array | None = None,
        before: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """The next states of all positions, [B, L, D]; or of one in each row, `at`, int32 [B], by its own mask. And
        the keys and values of all of them.

        Args:
            normed: `x`, normalised, where the layer does not do it.
            before: keys and values of a prefix of each row, [B, S, K, H].
        """
        normed = self.input_layernorm(x) if normed is None else normed
        attended, seen = self.self_attn(normed, mask, angles, at, before)
        x = pick(x, at)
        if not self.config.sandwich_norms:
            x = self._add(x, attended)
            return self._add(x, self.mlp(self.post_attention_layernorm(x))), seen
        x = self._add(x, self.post_attention_layernorm(attended))
        update = self.mlp(self.pre_feedforward_layernorm(x))
        return self._add(x, self.post_feedforward_layernorm(update)), seen

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        if self.config.residual_scale == 1.0:
            return x + update
        return (x.astype(jnp.float32) + update.astype(jnp.float32) * self.config.residual_scale).astype(x.dtype)


class Decoder(nnx.Module):
    """A transformer that scores a token of each row, after one or several of its layers; or after the last the mean of
    all tokens; or that makes vectors of some tokens.

    Padding is on the right: rotary positions are relative, and under a causal mask no real token sees it.

    Raises:
        NotImplementedError: a head or a mean after several layers, which take a linear or tied head and one token.
    """

    def __init__(self, config: DecoderConfig, readout: Readout, dtypes: DTypes) -> None:
        of_last = readout.position in ("mean", "markers") or readout.head == "dense"
        if of_last and readout.layers != (config.num_hidden_layers,):
            raise NotImplementedError(f"means and dense heads are those of the last layer alone, not {readout}")
        self.config = config
        self.readout = readout
        self.dtypes = dtypes
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, ("vocab", "embed"), dtypes)
        if config.embedding_norm:
            self.embed_norm = _norm(config, dtypes)
        self.layers = stack(lambda: DecoderLayer(config, dtypes), config.num_hidden_layers)
        if not config.first_norm:
            self.input_layernorms = stack(lambda: _norm(config, dtypes), config.num_hidden_layers - 1, axis=None)
        self.norm = _norm(config, dtypes)
        if readout.head == "projector":
            self.projector = Projector(config.hidden_size, dtypes)
        elif readout.head == "dense":
            self.head: Any = ClassificationHead(readout.dense, config.hidden_size, dtypes)
        elif readout.head == "linear":
            self.head = parameter((readout.head_rows, config.hidden_size), (None, "embed"), dtypes)

    def __call__(
        self,
        input_ids: jax.Array,
        lengths: jax.Array,
        passage_starts: jax.Array,
        prefix: Prefix | None = None,
        *,
        readout: Readout,
        compression: Compression | None = None,
    ) -> jax.Array:
        """Score pairs. Nothing is computed beyond the last layer that is scored.

        Args:
            input_ids: int32 [B, L].
            lengths: int32 [B]; real tokens in each row.
            passage_starts: int32 [B]; where each row's passage begins.
            prefix: what rows begin with, and what none of the above counts. For causal models that score the last
                token; it takes no compression.
            readout: that of the model, or of some of its layers (`Readout.at`).
            compression: where passages are compressed; None for nowhere.

        Returns:
            float32 logits, [B, len(readout.layers)]; with a projector its vectors.

        Raises:
            ValueError: a readout that differs from the model's in more than layers and heads.
        """
        if replace(readout, layers=self.readout.layers, heads=self.readout.heads) != self.readout:
            raise ValueError(f"the readout of a call differs in layers and heads alone from {self.readout}: {readout}")
        if readout.pad_token is not None:
            positions = jnp.arange(input_ids.shape[1])[None]  # [1, L]
            real = (positions < lengths[:, None]) & (input_ids != readout.pad_token)
            lengths = jnp.maximum(jnp.where(real, positions + 1, 0).max(axis=1), 1)
        x = self._embed(input_ids)  # [B, L, D]
        states = jnp.zeros((len(readout.layers), x.shape[0], x.shape[-1]), x.dtype)  # [layers, B, D]
        if readout.layers[0] == 0:
            states = states.at[0].set(pick(x, self._scored(lengths))[:, 0])
        start = 0
        if compression is not None:
            sizes = {"ratio": compression.ratio, "suffix_length": compression.suffix_length}
            for stop, new_length in compression.at:
                if 0 < stop < readout.layers[-1]:
                    x, states = self._run(x, states, lengths, start, stop, readout)
                    x, lengths = compress(x, lengths, passage_starts, new_length=new_length, **sizes)
                    start = stop
        x, states = self._run(x, states, lengths, start, readout.layers[-1], readout, prefix)
        if readout.position == "markers":
            return self.projector(self.norm(x), input_ids, readout)
        if readout.position == "mean":
            return self._logits(mean_of_tokens(self.norm(x), lengths)[None], readout)
        return self._logits(self.norm(states), readout)

    def keys_values(self, input_ids: jax.Array, lengths: jax.Array, *, readout: Readout) -> KeysValues:
        """What a `Prefix` has of the layers that are run.

        Args:
            input_ids: int32 [P, S], padding on the left.
            lengths: int32 [P]; real tokens in each row.
            readout: as in a call.
        """
        config, depth = self.config, readout.layers[-1]
        x = self._embed(input_ids)  # [P, S, D]
        shape = depth, *input_ids.shape, config.num_key_value_heads, config.head_dim
        seen = KeysValues(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype))
        mask_of, angles_of = self._sight(input_ids.shape[1], lengths, 0, depth, starts=input_ids.shape[1] - lengths)

        def step(layer: DecoderLayer, index: jax.Array, carry: Any) -> Any:
            x, seen = carry
            x, own = layer(x, mask_of(index), angles_of(index), normed=self._normed(x, index))
            put = jax.lax.dynamic_update_index_in_dim
            return x, KeysValues(*(put(all_, new, index, 0) for all_, new in zip(seen, own, strict=True)))

        return run_stack(self.layers, 0, depth, step, (x, seen))[1]

    def _embed(self, input_ids: jax.Array) -> jax.Array:
        x = self.embed_tokens(input_ids)  # [B, L, D]
        x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        return self.embed_norm(x) if self.config.embedding_norm else x

    def _scored(self, lengths: jax.Array) -> jax.Array:
        """The position of each row that is scored, int32 [B]."""
        return lengths - 1 if self.readout.position == "last" else jnp.zeros_like(lengths)

    def _normed(self, x: jax.Array, index: jax.Array | int) -> jax.Array | None:
        """The input of a layer, normalised; None where the layer does that itself."""
        if self.config.first_norm:
            return None
        norm = layer_of(self.input_layernorms, jnp.maximum(index - 1, 0))
        return jnp.where(jnp.asarray(index) == 0, x, norm(x))

    def _sight(
        self,
        length: int,
        lengths: jax.Array,
        start: int,
        stop: int,
        before: int = 0,
        starts: jax.Array | None = None,
    ) -> tuple[Callable[..., Mask], Callable[..., Angles]]:
        """What positions see in a layer, and their rotary angles, as functions of its index.

        Args:
            length: L, of the rows.
            lengths: int32 [B], real tokens of each.
            start, stop: the layers that are run.
            before: S, positions of a prefix, which are seen too.
            starts: int32 [B], how many of these, or with no prefix of the row's own, are padding on the left.
        """
        config, total = self.config, before + length
        bases = (config.rope_theta, config.sliding_rope_theta or config.rope_theta)
        first = None if starts is None else before - starts
        tables = [rotary_angles(length, lengths, config.head_dim, base, config.rope_scaling, first) for base in bases]
        windows = np.asarray(config.sliding_windows or (0,) * config.num_hidden_layers)
        slides = windows > 0
        windows = np.where((windows == 0) | (windows >= total), total, windows)
        kinds = tuple(np.unique(windows[start:stop]).tolist())
        places = jnp.arange(total)[None]  # [1, S + L]

        def back(at: jax.Array) -> jax.Array:
            return before + at[..., None] - places[None]  # [B or 1, L or 1, S + L]

        def seen(back: jax.Array) -> jax.Array:
            if not config.causal:
                return (places < lengths[:, None])[:, None]
            visible = back >= 0
            return visible if starts is None else visible & (places >= starts[:, None])[:, None]

        away = back(jnp.arange(length)[None])
        everywhere = seen(away)

        def mask_of(index: jax.Array | int, at: jax.Array | None = None) -> Mask:
            """For all positions, or for one in each row, int32 [B]."""
            window = jnp.asarray(windows)[index]
            if at is not None:
                of_one = back(at[:, None])
                return Mask(seen(of_one) & (jnp.abs(of_one) < window))
            mask = Mask(everywhere, starts=starts, causal=True) if config.causal else Mask(everywhere, lengths)
            if kinds == (total,):
                return mask
            dense = everywhere & (away < window) if config.causal else everywhere
            return replace(mask, dense=dense, window=window, windows=kinds)

        def angles_of(index: jax.Array | int) -> Angles:
            if config.sliding_rope_theta is None:
                return Angles(*tables[0])
            sliding = jnp.asarray(slides)[index]
            return Angles(*(jnp.where(sliding, local, everywhere) for everywhere, local in zip(*tables, strict=True)))

        return mask_of, angles_of

    def _run(
        self,
        x: jax.Array,
        states: jax.Array,
        lengths: jax.Array,
        start: int,
        stop: int,
        readout: Readout,
        prefix: Prefix | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Run the layers [start, stop); after those that are scored, keep the state of each row's scored token.

        Of the last of them nothing else is computed, unless all tokens are read.
        """
        if start == stop:
            return x, states
        layers = readout.layers
        before, starts = 0, None
        if prefix is not None:
            before = prefix.seen.key.shape[2]
            starts = before - prefix.lengths[prefix.of_row]
        mask_of, angles_of = self._sight(x.shape[1], lengths, start, stop, before, starts)
        # States that are not scored go where the last ones will be.
        slots = np.full(self.config.num_hidden_layers + 1, len(layers) - 1)
        slots[list(layers)] = np.arange(len(layers))
        scored = self._scored(lengths)

        def run(layer: Any, index: jax.Array | int, x: jax.Array, at: jax.Array | None = None) -> jax.Array:
            seen = None if prefix is None else prefix.of_rows(index)
            return layer(x, mask_of(index, at), angles_of(index), at, self._normed(x, index), seen)[0]

        def step(layer: DecoderLayer, index: jax.Array, carry: Any) -> Any:
            x, states = carry
            x = run(layer, index, x)
            state = pick(x, scored)[:, 0]  # [B, D]
            slot = jnp.asarray(slots)[index + 1]
            return x, jax.lax.dynamic_update_index_in_dim(states, state, slot, 0)

        if stop < layers[-1] or readout.position in ("mean", "markers"):
            return run_stack(self.layers, start, stop, step, (x, states))
        x, states = run_stack(self.layers, start, stop - 1, step, (x, states))
        x = run(layer_of(self.layers, stop - 1), stop - 1, x, scored)  # [B, 1, D]
        return x, states.at[-1].set(x[:, 0])

    def _logits(self, states: jax.Array, readout: Readout) -> jax.Array:
        """float32 [B, layers] of normalised states [layers, B, D]."""
        if readout.head == "dense":
            return self.head(states[-1])
        states = states.astype(jnp.float32)
        matrix = self.embed_tokens.embedding[...] if readout.head == "tied" else self.head[...]
        rows = matrix[np.asarray(readout.rows)].astype(jnp.float32)  # [layers, 1 or 2, D]
        logits = jnp.einsum("sbd,std->bst", states, rows) * readout.logit_scale
        if readout.softcap is not None:
            logits = readout.softcap * jnp.tanh(logits / readout.softcap)
        return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 0] - logits[..., 1]


def _norm(config: DecoderConfig, dtypes: DTypes) -> RMSNorm | LayerNorm:
    if config.layer_norm:
        return LayerNorm(config.hidden_size, config.rms_norm_eps, dtypes, use_bias=config.norm_bias)
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset, dtypes)
