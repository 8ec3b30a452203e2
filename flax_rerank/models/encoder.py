"""Encoder-only cross-encoders: BERT and XLM-RoBERTa with a classification head of one label."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.models.attention import Mask, attend
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


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an `Encoder`. Fields mean what they mean in Hugging Face's config.json.

    `position_offset` is the row of the position table that the first token takes: 0 for BERT,
    `pad_token_id + 1` for XLM-RoBERTa.
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
    pad_token_id: int
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
    def __init__(self, config: EncoderConfig) -> None:
        self.word = Embed(config.vocab_size, config.hidden_size, ("vocab", "embed"))
        self.position = Embed(config.max_position_embeddings, config.hidden_size, (None, "embed"))
        self.token_type = Embed(config.type_vocab_size, config.hidden_size, (None, "embed"))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.position_offset = config.position_offset

    def __call__(self, input_ids: jax.Array, token_types: jax.Array) -> jax.Array:
        positions = jnp.arange(input_ids.shape[1])[None] + self.position_offset
        parts = self.word(input_ids), self.position(positions), self.token_type(token_types)
        return self.norm(sum(part.astype(jnp.float32) for part in parts))


class SelfAttention(nnx.Module):
    def __init__(self, config: EncoderConfig) -> None:
        width = config.hidden_size
        self.query = Linear(width, width, ("embed", "heads"))
        self.key = Linear(width, width, ("embed", "heads"))
        self.value = Linear(width, width, ("embed", "heads"))
        self.output = Linear(width, width, ("heads", "embed"))
        self.heads = config.num_attention_heads

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask) -> jax.Array:
        """Attend from the positions of `x` to those of `seen`."""
        size = x.shape[-1] // self.heads
        query, key, value = (
            project(states).reshape(*states.shape[:-1], self.heads, size)
            for project, states in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        mixed = attend(query, key, value, mask, scale=size**-0.5)
        return self.output(mixed.reshape(x.shape), jnp.float32)


class EncoderLayer(nnx.Module):
    """Post-norm: each sublayer's output is added to its input, and the sum is normalised. Sums are float32."""

    def __init__(self, config: EncoderConfig) -> None:
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size, ("embed", "mlp"))
        self.output = Linear(config.intermediate_size, config.hidden_size, ("mlp", "embed"))
        self.output_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array, seen: jax.Array, mask: Mask) -> jax.Array:
        """The next states of the positions of `x`, which attend to those of `seen`."""
        x = self.attention_norm(x.astype(jnp.float32) + self.attention(x, seen, mask))
        activated = ACTIVATIONS[self.hidden_act](self.intermediate(x, jnp.float32)).astype(x.dtype)
        update = self.output(activated, jnp.float32)
        return self.output_norm(x.astype(jnp.float32) + update)


class ClassificationHead(nnx.Module):
    """dense, tanh, projection to one label, of the first token; in float32."""

    def __init__(self, config: EncoderConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, ("embed", None))
        self.out_proj = Linear(config.hidden_size, 1, ("embed", None))

    def __call__(self, first: jax.Array) -> jax.Array:
        graphdef, params = nnx.split(self)
        head = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.float32), params))
        return head.out_proj(jnp.tanh(head.dense(first.astype(jnp.float32))))


class Encoder(nnx.Module):
    """BERT (Devlin et al., 2018) or XLM-RoBERTa (Conneau et al., 2019) with a head that scores a pair.

    Padding is on the right. Where the model knows token types, the tokens from `passage_starts` on are
    of type 1, as BERT's tokenizer has it.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = stack(lambda: EncoderLayer(config), config.num_hidden_layers)
        self.head = ClassificationHead(config)

    def __call__(self, input_ids: jax.Array, lengths: jax.Array, passage_starts: jax.Array) -> jax.Array:
        """Score pairs.

        Args:
            input_ids: int32, [B, L].
            lengths: int32, [B]; real tokens in each row.
            passage_starts: int32, [B]; where each row's passage begins.

        Returns:
            float32 logits, [B, 1].
        """
        positions = jnp.arange(input_ids.shape[1])[None]
        token_types = jnp.zeros_like(input_ids)
        if self.config.type_vocab_size > 1:
            token_types = (positions >= passage_starts[:, None]).astype(jnp.int32)
        x = self.embeddings(input_ids, token_types)
        mask = Mask((positions < lengths[:, None])[:, None], lengths=lengths)
        last = self.config.num_hidden_layers - 1
        x = run_stack(self.layers, 0, last, lambda layer, _, x: layer(x, x, mask), x)
        # The head sees the first token alone.
        first = layer_of(self.layers, last)(x[:, :1], x, mask)
        return self.head(first[:, 0])
