"""What an encoder computes: padding, positions, token types, and the whole against numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.compression import Compression
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.readout import Readout

BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-6,
    "hidden_act": "relu",
    "position_offset": 0,
}
ROBERTA = BERT | {"type_vocab_size": 1, "position_offset": 2}
FIRST = Readout("first", "dense", layers=(3,), heads=(0,))
LENGTHS = np.array([17, 24, 5], np.int32)
STARTS = np.array([6, 9, 3], np.int32)


def random_encoder(fields):
    """The encoder with random weights, and a jitted function of (ids, lengths, passage starts)."""
    dtypes = DTypes(np.float32, np.float32)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Encoder(EncoderConfig(**fields), FIRST, dtypes)))
    rng = np.random.default_rng(0)

    def draw(path, param):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0  # the weights of norms
        return jnp.asarray(rng.standard_normal(param.shape, dtype=np.float32) * 0.3 + around)

    state = jax.tree_util.tree_map_with_path(draw, state)
    step = jax.jit(lambda state, *batch: nnx.merge(graphdef, state)(*batch, readout=FIRST))
    return nnx.merge(graphdef, state), lambda *batch: np.asarray(step(state, *batch))


def batch(length, padding=0):
    ids = np.full((len(LENGTHS), length), padding, np.int32)
    for row, real in enumerate(LENGTHS):
        ids[row, :real] = np.random.default_rng(row).integers(2, BERT["vocab_size"], real)
    return ids, LENGTHS, STARTS


def in_numpy(encoder, fields, ids, start):
    """The score of one row without padding, in float64."""
    get = lambda param: np.asarray(param[...], np.float64)  # noqa: E731

    def norm(x, module, layer=...):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + fields["layer_norm_eps"])
        return x * get(module.scale)[layer] + get(module.bias)[layer]

    def linear(x, module, layer=...):
        return np.tensordot(x, get(module.kernel)[layer], axes=1) + get(module.bias)[layer]

    table, layers = encoder.embeddings, encoder.layers
    positions = np.arange(len(ids)) + fields["position_offset"]
    types = (np.arange(len(ids)) >= start) * (fields["type_vocab_size"] - 1)
    x = get(table.word.embedding)[ids] + get(table.position.embedding)[positions]
    x = norm(x + get(table.token_type.embedding)[types], table.norm)
    for layer in range(fields["num_hidden_layers"]):
        attention = layers.attention
        query, key, value = (linear(x, part, layer) for part in (attention.query, attention.key, attention.value))
        mixed = np.empty_like(query)
        for head in np.split(np.arange(x.shape[1]), fields["num_attention_heads"]):
            scores = np.exp(query[:, head] @ key[:, head].T / len(head) ** 0.5)
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ value[:, head]
        x = norm(x + linear(mixed, layers.attention.output, layer), layers.attention_norm, layer)
        inner = np.maximum(linear(x, layers.intermediate, layer), 0)
        x = norm(x + linear(inner, layers.output, layer), layers.output_norm, layer)
    return linear(np.tanh(linear(x[0], encoder.head.dense)), encoder.head.out_proj)


@pytest.mark.parametrize("fields", [BERT, ROBERTA], ids=["bert", "roberta"])
def test_scores_are_those_of_a_plain_implementation(fields):
    encoder, score = random_encoder(fields)
    ids, lengths, starts = batch(24)
    expected = [in_numpy(encoder, fields, ids[row, : lengths[row]], starts[row]) for row in range(len(ids))]
    scores = score(ids, lengths, starts)
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)


def test_padding_does_not_change_scores():
    _, score = random_encoder(BERT)
    scores = score(*batch(24))
    assert scores.shape == (3, 1)
    np.testing.assert_allclose(score(*batch(40)), scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(score(*batch(24, padding=7)), scores)


def test_where_the_passage_starts_matters_only_with_token_types():
    for fields, matters in ((BERT, True), (ROBERTA, False)):
        _, score = random_encoder(fields)
        ids, lengths, starts = batch(24)
        difference = np.abs(score(ids, lengths, starts) - score(ids, lengths, starts + 1)).min()
        assert difference > 1e-4 if matters else difference == 0


def test_an_encoder_has_one_readout_and_no_compression():
    config, dtypes = EncoderConfig(**BERT), DTypes(np.float32, np.float32)
    with pytest.raises(
        NotImplementedError,
        match="an encoder scores its last layer's first token, or the mean of all, by a dense head",
    ):
        Encoder(config, replace(FIRST, position="last"), dtypes)
    encoder = Encoder(config, FIRST, dtypes)
    with pytest.raises(ValueError, match="an encoder scores after its last layer, 3, by its own readout"):
        encoder(*batch(24), readout=replace(FIRST, layers=(2,)))
    with pytest.raises(ValueError, match="an encoder cannot compress tokens"):
        encoder(*batch(24), readout=FIRST, compression=Compression(((1, 20),), ratio=2, suffix_length=0))


def test_the_longest_input_leaves_out_the_positions_before_the_offset():
    assert EncoderConfig(**BERT).max_length == 40
    assert EncoderConfig(**ROBERTA).max_length == 38


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; known: gelu"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
    ],
    ids=["activation", "heads"],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**BERT | changes)
