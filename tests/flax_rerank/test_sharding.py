"""Meshes, which parameter lies where on them, and that scores do not depend on it."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from reference_cases import CASES, largest_difference, load_case

from flax_rerank import FlaxAutoReranker, FlaxReranker, ShardingRules
from flax_rerank.batching import Shape, Step
from flax_rerank.dtypes import FLOAT32
from flax_rerank.models import Decoder, DecoderConfig, Encoder, EncoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.params import shapes_of
from flax_rerank.scoring import Scorer
from flax_rerank.sharding import host_device, make_mesh, parameter_shardings
from flax_rerank.text.pairs import TokenizedPairs
from flax_rerank.text.prompts import Template
from flax_rerank.text.tokenizer import Tokenizer

pytestmark = pytest.mark.optimized
ENCODER = EncoderConfig(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    intermediate_size=128,
    max_position_embeddings=64,
    type_vocab_size=2,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
    position_offset=0,
)


def decoder_config(**switches):
    return DecoderConfig(
        **{
            "vocab_size": 64,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "head_dim": 16,
            "intermediate_size": 128,
            "max_position_embeddings": 64,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "query_scale": 0.25,
        }
        | switches
    )


def module_of(config):
    """An abstract model, and its readout."""
    encoder = isinstance(config, EncoderConfig)
    readout = Readout("first", "dense", (2,), (0,)) if encoder else Readout("last", "tied", (2,), (0,), (5,))
    return nnx.eval_shape(lambda: (Encoder if encoder else Decoder)(config, readout, FLOAT32)), readout


# Meshes


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (None, (8, 1)),
        ("data=4,model=2", (4, 2)),
        ("model=2", (4, 2)),
        ("model=8, data=1", (1, 8)),
        ({"data": 2, "model": 4}, (2, 4)),
    ],
)
def test_a_mesh_has_the_axes_data_and_model(shape, sizes):
    mesh = make_mesh(None, shape)
    assert tuple(mesh.shape.items()) == (("data", sizes[0]), ("model", sizes[1]))
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_a_mesh_takes_the_devices_that_are_named():
    assert make_mesh(["cpu:6", 1], "model=2").devices.tolist() == [[jax.devices()[6], jax.devices()[1]]]


def test_the_host_is_a_cpu_where_there_is_one(monkeypatch):
    assert host_device() == "cpu:0"

    def no_cpu(devices):
        raise ValueError("no device")

    monkeypatch.setattr("flax_rerank.sharding.find_devices", no_cpu)
    assert host_device() == 0


def test_a_ready_mesh_is_taken_as_it_lies():
    given = jax.make_mesh((2, 4), ("model", "data"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    mesh = make_mesh(None, given)
    assert mesh.devices.tolist() == given.devices.tolist()
    assert dict(mesh.shape) == {"model": 2, "data": 4}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize(
    ("devices", "shape", "message"),
    [
        (None, "data=3", "mesh data=3,model=1 takes 3 devices; there are 8"),
        (None, "model=3", "mesh data=2,model=3 takes 6 devices; there are 8"),
        (["cpu:0"], "model=2", "mesh data=1,model=2 takes 2 devices; there are 1"),
        (None, "data=16", "takes 16 devices; there are 8"),
        (None, "data:4", "'data:4' is not of the form data=4,model=2"),
        (None, "data=x", "'data=x' is not of the form data=4,model=2"),
        (None, "tensor=2", "the axes are data and model"),
        (None, "data=0", "each at least 1"),
        (None, "data=2,data=4", "is not of the form"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(devices, shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(devices, shape)


def test_a_ready_mesh_needs_the_two_axes_and_no_devices():
    other = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"axes \['batch'\]; it takes 'data' and 'model'"):
        make_mesh(None, other)
    with pytest.raises(ValueError, match="mesh or devices, not both"):
        make_mesh("cpu", make_mesh())


# Rules


def shardings(config, mesh, rules=ShardingRules()):  # noqa: B008
    return parameter_shardings(module_of(config)[0], make_mesh(None, mesh), rules)


def test_heads_feed_forward_and_vocabulary_are_split_and_the_rest_is_not():
    split = {path: sharding.spec for path, sharding in shardings(ENCODER, "data=4,model=2").items()}
    assert split["embeddings.word.embedding"] == PartitionSpec("model", None)
    assert split["layers.attention.query.kernel"] == PartitionSpec(None, None, "model")
    assert split["layers.attention.query.bias"] == PartitionSpec(None, "model")
    assert split["layers.attention.output.kernel"] == PartitionSpec(None, "model", None)
    assert split["layers.intermediate.kernel"] == PartitionSpec(None, None, "model")
    assert split["layers.output.kernel"] == PartitionSpec(None, "model", None)
    whole = [path for path, spec in split.items() if "model" not in spec]
    assert len(whole) == 14
    assert all("norm" in path or "bias" in path or "head" in path or "embeddings" in path for path in whole)


def test_key_and_value_heads_that_do_not_divide_are_replicated():
    split = shardings(decoder_config(num_key_value_heads=4), "model=8")
    assert split["layers.self_attn.k_proj.kernel"].spec == PartitionSpec(None, None, None)
    assert split["layers.self_attn.v_proj.kernel"].spec == PartitionSpec(None, None, None)
    assert split["layers.self_attn.q_proj.kernel"].spec == PartitionSpec(None, None, "model")
    split = shardings(decoder_config(num_key_value_heads=4), "model=4")
    assert split["layers.self_attn.k_proj.kernel"].spec == PartitionSpec(None, None, "model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            decoder_config(num_attention_heads=12, num_key_value_heads=4),
            "num_attention_heads is 12, .*model=8: take model=4,.*heads=None",
        ),
        (decoder_config(intermediate_size=100), "intermediate_size is 100, .*model=8: take model=4,.*mlp=None"),
        (decoder_config(vocab_size=63), "vocab_size is 63, .*model=8: take model=1,.*--replicate vocab"),
    ],
)
def test_any_other_axis_that_does_not_divide_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        shardings(config, "model=8")


def test_rules_can_replicate_what_does_not_divide():
    split = shardings(decoder_config(vocab_size=63), "model=8", ShardingRules(vocab=None))
    assert split["embed_tokens.embedding"].spec == PartitionSpec(None, None)


def test_rules_that_split_two_axes_over_one_are_refused():
    with pytest.raises(ValueError, match=r"two axes of .* over the same mesh axis"):
        shardings(ENCODER, "model=8", ShardingRules(embed="model"))


def test_rules_name_axes_that_the_mesh_has():
    with pytest.raises(ValueError, match="split mlp over 'tensor'; the mesh has data, model"):
        shardings(ENCODER, "model=8", ShardingRules(mlp="tensor"))


# Models


@pytest.mark.parametrize("name", ["encoder-bert", "decoder-llama"])
@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_devices_hold_their_slices_and_no_more(name):
    model = FlaxAutoReranker.from_finetuned(str(CASES / name), mesh="data=4,model=2").model
    split = 0
    for path, param in nnx.to_flat_state(nnx.state(model)):
        array = param.get_value()
        parts = [1 if axis not in ("vocab", "heads", "kv_heads", "mlp") else 2 for axis in param.get_metadata("axes")]
        expected = tuple(size // part for size, part in zip(array.shape, parts, strict=True))
        assert {shard.data.shape for shard in array.addressable_shards} == {expected}, path
        assert len(array.addressable_shards) == 8
        split += 2 in parts
    assert split == {"encoder-bert": 11, "decoder-llama": 8}[name]


# Rounding alone moves their scores by more than 1e-5: PyTorch's own float32 scores are up to 1.7e-4 off those in
# float64. What was seen here is 6.7e-5 and 3.0e-5.
ILL_CONDITIONED = ("encoder-xlmr", "decoder-qwen2")
TABLE = (Shape(8, 128),)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("encoder-bert", "data=8"),
        *(
            (name, "data=4,model=2")
            for name in (
                "encoder-bert",
                "encoder-xlmr",
                "decoder-gemma",
                "decoder-gemma2",
                "decoder-qwen2",
                "layerwise-minicpm",
                "lightweight-gemma2",
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_eight_devices_score_as_one_does(reranker, name, mesh):
    case = load_case(name)
    run = case.runs[0]
    places = [place for place, ids in enumerate(run["input_ids"]) if len(ids) <= 128]
    pairs = [case.pairs[place] for place in places]
    sharded = FlaxAutoReranker.from_finetuned(str(CASES / name), mesh=mesh, show_progress_bar=False, **run["init"])
    one, eight = (
        model.run(model.prepare(pairs, table=TABLE, **run["call"])) for model in (reranker(name, run["init"]), sharded)
    )
    assert one.shapes == eight.shapes == TABLE
    one, eight = ([*each.scores.values()] if isinstance(each.scores, dict) else each.scores for each in (one, eight))
    # Each may be on another side of the exact scores.
    difference = min(largest_difference(one, eight), case.error(0, eight, places))
    assert difference <= (1e-4 if name in ILL_CONDITIONED else 1e-5)


def pairs_of(lengths):
    """Pairs of random ids: a query of three tokens, and a passage."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 64, size) for length in lengths for size in (3, length - 3)]
    index = np.arange(len(lengths))
    queries = np.full(len(lengths), 3, np.int32)
    template = Template((), (), (), capacity=64, query_max_length=64, passage_max_length=64)
    tokenizer = Tokenizer(None, None, None, "right", ())
    return TokenizedPairs(
        template,
        tokenizer,
        texts,
        2 * index,
        2 * index + 1,
        queries,
        np.asarray(lengths, np.int32) - 3,
        index < 0,
        {},
    )


@pytest.mark.parametrize(
    "config",
    [
        ENCODER,
        decoder_config(),
        decoder_config(num_key_value_heads=4, sandwich_norms=True, attention_softcap=50.0),
        decoder_config(num_key_value_heads=1, norm_offset=1.0),
    ],
    ids=["encoder", "decoder", "gemma2-like", "one-key-value-head"],
)
def test_a_model_over_eight_devices_scores_as_over_one(config):
    module, readout = module_of(config)
    rng = np.random.default_rng(1)
    values = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes_of(module).items()}
    pairs = pairs_of([30, 5, 17, 9])
    scores = []
    for devices, shape in (("cpu:0", None), (None, "model=8")):
        mesh = make_mesh(devices, shape)
        placement = parameter_shardings(module, mesh, ShardingRules())
        params = {
            path: jax.device_put(value * (1.0 if value.ndim == 1 else 0.2), placement[path])
            for path, value in values.items()
        }
        steps = [Step(np.arange(4), Shape(4, 32))]
        scores.append(Scorer(module, mesh, FLOAT32)(params, pairs, steps, lambda length: (readout, None))[0])
    assert np.ptp(scores[0]) > 1e-3
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)


def test_a_constructor_takes_mesh_and_rules():
    model = FlaxReranker(
        str(CASES / "encoder-bert"),
        mesh={"model": 2, "data": 1},
        devices=[3, 5],
        sharding_rules=ShardingRules(mlp=None),
    )
    assert [device.id for device in model.mesh.devices.flat] == [3, 5]
    assert model.params["layers.intermediate.kernel"].sharding.spec == PartitionSpec(None, None, None)
