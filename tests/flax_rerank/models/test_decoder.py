"""What a decoder computes, and what its compiled step costs.

Costs are those of XLA's analysis of the compiled program. It counts the body of a loop once, however often the
loop runs, and the compiled program says for each of its loops how often that is. So the cost of a segment of
layers is the cost of its body times its trips, and the cost of its body is what a program with the segment
costs more than one without: `layer_flops` takes apart programs with one segment, and a program with several is
first shown to cost what its parts do. All of this holds for any width, and nothing needs to be allocated to
compile: the shapes are those of bge-reranker-v2.5-gemma2-lightweight.
"""

import json
import re
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.compression import Compression, compress
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.models.rotary import RopeScaling

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "query_scale": 8**-0.5,
}
GEMMA2 = LLAMA | {
    "hidden_act": "gelu_pytorch_tanh",
    "norm_offset": 1.0,
    "sandwich_norms": True,
    "embedding_scale": 32**0.5,
    "attention_softcap": 5.0,
    "sliding_windows": (6, 0, 6, 0, 6),
}
QWEN3 = LLAMA | {"qk_norm": True, "query_key_value_bias": True}
MINICPM = LLAMA | {
    "residual_scale": 0.6,
    "rope_scaling": RopeScaling("dynamic", 2.0, original_max_position_embeddings=16),
}
HEADS = Readout("last", "linear", layers=(2, 3, 4, 5), heads=(0, 1, 2, 3))
TIED = Readout("last", "tied", layers=(5,), heads=(0,), tokens=(11,))
FAMILIES = {
    "llama": (LLAMA, HEADS),
    "gemma2": (GEMMA2, replace(HEADS, softcap=3.0)),
    "qwen3": (QWEN3, TIED),
    "minicpm": (MINICPM, replace(HEADS, logit_scale=0.5)),
}
FLOAT32 = DTypes(np.float32, np.float32)

BATCH = 3
LENGTHS = np.array([23, 9, 30], np.int32)
STARTS = np.array([6, 4, 9], np.int32)


def random_decoder(fields, readout, scale=0.2):
    """A jitted function of (ids, lengths, passage starts), a readout and a compression, with random weights."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(DecoderConfig(**fields), readout, FLOAT32)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape, dtype=np.float32) * scale), state)

    def score(state, ids, lengths, starts, readout, compression):
        return nnx.merge(graphdef, state)(ids, lengths, starts, readout=readout, compression=compression)

    step = jax.jit(score, static_argnames=("readout", "compression"))
    return lambda *batch, readout=readout, compression=None: np.asarray(step(state, *batch, readout, compression))


def batch(length, seed=0):
    ids = np.zeros((BATCH, length), np.int32)
    for row, real in enumerate(LENGTHS):
        ids[row, :real] = np.random.default_rng(seed + row).integers(1, LLAMA["vocab_size"], real)
    return ids, LENGTHS, STARTS


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_does_not_change_scores(family):
    fields, readout = FAMILIES[family]
    score = random_decoder(fields, readout)
    scores = score(*batch(30))
    assert scores.shape == (BATCH, len(readout.layers))
    assert np.ptp(scores, axis=0).min() > 0.01
    np.testing.assert_allclose(score(*batch(48)), scores, rtol=0, atol=1e-5)
    ids, lengths, starts = batch(48)
    spoiled = np.where(np.arange(48) < lengths[:, None], ids, 5)
    np.testing.assert_allclose(score(spoiled, lengths, starts), scores, rtol=0, atol=1e-5)


def test_the_score_of_a_layer_does_not_depend_on_the_other_layers_asked():
    score = random_decoder(*FAMILIES["gemma2"])
    readout = FAMILIES["gemma2"][1]
    together = score(*batch(30))
    for layers in ((2,), (3, 5)):
        alone = score(*batch(30), readout=readout.at(layers))
        np.testing.assert_allclose(alone, together[:, [layer - 2 for layer in layers]], rtol=0, atol=1e-6)
    assert np.ptp(together, axis=1).min() > 0.01
    swapped = score(*batch(30), readout=readout.at((2,), heads=(3,)))
    assert np.abs(swapped - together[:, :1]).max() > 0.01


def test_a_negative_token_is_subtracted_from_the_positive_one():
    """Each logit has its own softcap, as in the language model. Weights are the same wherever shapes are."""
    bounds = {"logit_scale": 0.5, "softcap": 3.0}
    fields, last = LLAMA | {"num_hidden_layers": 1}, {"layers": (1,), "heads": (0,)}
    heads = Readout("last", "linear", layers=(0, 1), heads=(0, 1), **bounds)
    score = random_decoder(fields, heads)
    logits = [score(*batch(30), readout=heads.at((1,), (row,))) for row in (0, 1)]
    scores = random_decoder(fields, Readout("last", "linear", tokens=(11, 40), **last, **bounds))(*batch(30))
    assert scores.shape == (BATCH, 1)
    np.testing.assert_allclose(scores, logits[0] - logits[1], rtol=0, atol=1e-6)
    assert np.abs(scores).max() > 0.01
    tied = [Readout("last", "tied", tokens=tokens, **last, **bounds) for tokens in ((11,), (40,), (11, 40))]
    positive, negative, scores = (random_decoder(fields, readout)(*batch(30)) for readout in tied)
    np.testing.assert_allclose(scores, positive - negative, rtol=0, atol=1e-6)
    assert np.abs(scores).max() > 0.01


def compression(*at, ratio=2):
    return Compression(at, ratio=ratio, suffix_length=2)


def test_layers_before_a_compression_score_as_without_it():
    score = random_decoder(*FAMILIES["gemma2"])
    plain = score(*batch(30))
    scores = score(*batch(30), compression=compression((3, 24), ratio=4))
    np.testing.assert_allclose(scores[:, :2], plain[:, :2], rtol=0, atol=1e-6)
    assert np.abs(scores[:, 3] - plain[:, 3]).max() > 1e-3


def test_neither_the_length_that_compression_leaves_nor_padding_changes_scores():
    score = random_decoder(*FAMILIES["gemma2"])
    readout = FAMILIES["gemma2"][1].at((2, 3))
    ids, lengths, starts = batch(30)
    tight = score(ids, lengths, starts, readout=readout, compression=compression((1, 21), (2, 16)))
    spoiled = np.where(np.arange(30) < lengths[:, None], ids, 5)
    roomy = score(spoiled, lengths, starts, readout=readout, compression=compression((1, 30), (2, 30)))
    np.testing.assert_allclose(tight, roomy, rtol=0, atol=1e-5)


def test_a_sliding_window_hides_what_is_further_back():
    """Three layers of a window of 4 see 9 positions back from the last token, and no further."""
    fields = LLAMA | {"num_hidden_layers": 3, "sliding_windows": (4, 4, 4)}
    score = random_decoder(fields, Readout("last", "linear", layers=(3,), heads=(0,)), scale=0.6)
    ids, lengths, starts = batch(30)
    scores = score(ids, lengths, starts)
    for back, seen in ((9, True), (10, False)):
        changed = ids.copy()
        changed[0, lengths[0] - 1 - back] = 96 - changed[0, lengths[0] - 1 - back]
        difference = abs(score(changed, lengths, starts) - scores)[0, 0]
        assert difference > 1e-4 if seen else difference == 0


@pytest.mark.parametrize("changes", [{"position": "mean"}, {"head": "dense"}], ids=["position", "head"])
def test_means_and_dense_heads_of_several_layers_are_refused(changes):
    with pytest.raises(NotImplementedError, match="means and dense heads are those of the last layer alone"):
        Decoder(DecoderConfig(**LLAMA), replace(HEADS, **changes), FLOAT32)


def test_heads_that_do_not_share_key_and_value_heads_evenly_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of num_key_value_heads 3"):
        DecoderConfig(**LLAMA | {"num_key_value_heads": 3})


def test_a_config_comes_back_from_json():
    fields = MINICPM | {"sliding_windows": (6, 0, 6, 0, 6)}
    config = DecoderConfig(**fields)
    assert DecoderConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_a_call_with_the_readout_of_another_model_is_refused():
    score = random_decoder(LLAMA, HEADS)
    with pytest.raises(ValueError, match="the readout of a call differs in layers and heads alone"):
        score(*batch(30), readout=replace(HEADS, softcap=3.0))


# ---- the cost of the compiled step

GEMMA2_9B = {
    "vocab_size": 256000,
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "query_scale": 256**-0.5,
    "norm_offset": 1.0,
    "sandwich_norms": True,
    "embedding_scale": 3584**0.5,
    "sliding_windows": (4096, 0) * 21,
}
ROWS, LENGTH, SUFFIX = 4, 512, 14
# 20 tokens before a passage of 478, of which 239 are left.
COMPRESSED = 20 + 239 + SUFFIX + 7
PUBLISHED = Compression(((8, COMPRESSED),), ratio=2, suffix_length=SUFFIX)


def int32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def compile_step(fields, rows, length, layer, *, head="linear", compression=None):
    """The compiled program that scores a batch after one layer, from shapes alone."""
    readout = Readout("last", head, layers=(layer,), heads=(0,), tokens=(7,))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(DecoderConfig(**fields), readout, FLOAT32)))

    def step(state, *batch):
        return nnx.merge(graphdef, state)(*batch, readout=readout, compression=compression)

    return jax.jit(step).lower(state, int32(rows, length), int32(rows), int32(rows)).compile()


def flops(program):
    """As XLA counts them: the body of a loop once."""
    return program.cost_analysis()["flops"]


def trips(program):
    """How often each loop of a compiled program runs, in order."""
    text = program.as_text()
    counts = [int(n) for n in re.findall(r'"known_trip_count":{"n":"(\d+)"}', text)]
    assert len(counts) == text.count(" while("), "a loop whose trips the program does not say"
    return counts


def layer_flops(fields, rows, length):
    """The cost of one layer: of a loop's body, less embedding, head and the last layer."""
    without = compile_step(fields, rows, length, 1)
    assert trips(without) == []
    return flops(compile_step(fields, rows, length, 25)) - flops(without)


def last_layer_flops(fields, rows, length):
    """The cost of the layer after which only the last tokens are wanted."""
    nothing, one = (compile_step(fields, rows, length, layer) for layer in (0, 1))
    return flops(one) - flops(nothing)


def compression_flops(fields, rows, length, new_length):
    states = jax.ShapeDtypeStruct((rows, length, fields["hidden_size"]), jnp.float32)
    shortened = jax.jit(
        lambda *args: compress(*args, ratio=2, suffix_length=SUFFIX, new_length=new_length),
    )
    return flops(shortened.lower(states, int32(rows), int32(rows)).compile())


def test_a_layer_costs_what_its_products_do():
    """So that the counts below are of what they claim to be."""
    f = GEMMA2_9B
    tokens, heads = ROWS * LENGTH, f["num_attention_heads"] * f["head_dim"]
    weights = f["hidden_size"] * (2 * heads + 2 * heads // 2 + 3 * f["intermediate_size"])
    expected = 2 * tokens * weights + 2 * 2 * tokens * LENGTH * heads
    assert layer_flops(f, ROWS, LENGTH) == pytest.approx(expected, rel=0.02)


def test_of_the_last_layer_only_keys_and_values_are_computed_for_all_tokens():
    f = GEMMA2_9B
    heads = f["num_attention_heads"] * f["head_dim"]
    keys_and_values = f["hidden_size"] * 2 * heads // 2
    others = f["hidden_size"] * (2 * heads + 3 * f["intermediate_size"])
    expected = 2 * ROWS * LENGTH * keys_and_values + ROWS * (2 * others + 2 * 2 * LENGTH * heads)
    assert last_layer_flops(f, ROWS, LENGTH) == pytest.approx(expected, rel=0.02)


def test_a_cutoff_costs_its_share_of_the_layers():
    programs = {layer: compile_step(GEMMA2_9B, ROWS, LENGTH, layer) for layer in (8, 25, 42)}
    loops = {layer: trips(program) for layer, program in programs.items()}
    assert loops == {8: [7], 25: [24], 42: [41]}
    cost = {layer: loops[layer][0] * flops(program) for layer, program in programs.items()}
    for layer in (8, 25):
        assert cost[layer] / cost[42] == pytest.approx((layer - 1) / 41, rel=0.03)


def test_the_published_setting_saves_58_percent_and_more():
    """Ratio 2 at layer 8, cutoff at layer 25 of 42, for a pair that is nearly all passage."""
    program = compile_step(GEMMA2_9B, ROWS, LENGTH, 25, compression=PUBLISHED)
    before, after = (layer_flops(GEMMA2_9B, ROWS, length) for length in (LENGTH, COMPRESSED))
    compression = compression_flops(GEMMA2_9B, ROWS, LENGTH, COMPRESSED)
    last = last_layer_flops(GEMMA2_9B, ROWS, COMPRESSED)
    assert flops(program) == pytest.approx(before + compression + after + last, rel=0.01)
    assert trips(program) == [8, 24 - 8]
    full = GEMMA2_9B["num_hidden_layers"] * before
    assert (8 * before + compression + (24 - 8) * after + last) / full <= 0.42


def test_compressing_in_two_layers_shortens_the_sequence_twice():
    program = compile_step(GEMMA2_9B, 1, 256, 25, compression=replace(PUBLISHED, at=((8, 144), (16, 88))))
    assert trips(program) == [8, 8, 8]
    sizes = {int(n) for n in re.findall(r"f32\[1,(\d+),14336\]|f32\[(\d+),14336\]", program.as_text()) for n in n if n}
    assert {256, 144, 88} <= sizes


def test_no_array_of_tokens_times_vocabulary_is_ever_made():
    """Of a matrix as large as the vocabulary there is the table of embeddings, and nothing else."""
    rows, length, vocabulary, width = 4, 128, 32000, 64
    small = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 128, "head_dim": 16}
    for head in ("linear", "tied"):
        program = compile_step(LLAMA | small, rows, length, 5, head=head)
        assert program.memory_analysis().temp_size_in_bytes < rows * length * vocabulary * 4 / 10
        shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\]", program.as_text())}
        with_vocabulary = {shape for shape in shapes if max(shape) >= vocabulary}
        assert with_vocabulary == {(vocabulary, width)}
