"""The rule table: names match whole, every tensor and every slice is used once, and all of it inverts."""

import shutil

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from reference_cases import CASES, open_torch
from safetensors.numpy import load_file, save_file

from flax_rerank.convert.rules import IDENTITY, TRANSPOSE, Row, Rule, assign, assignments, fill, layer_norm, linear
from flax_rerank.params import ArrayParameters, load_arrays
from flax_rerank.saving.hugging_face import TorchTensors
from flax_rerank.spec import open_spec

ENCODERS = ("encoder-bert", "encoder-xlmr")


class Tensors:
    """Tensors of a dict; notes how many numbers are read."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.sizes = []

    def shapes(self):
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name, index=()):
        part = self.tensors[name][index]
        self.sizes.append(part.size)
        return part


def numbers(*shape, start=0):
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", ["xnorm.weight", "x.norm.weight", "norm.weight_g", "norm.weight.0", "normxweight"])
def test_names_match_whole(name):
    assert faults_of(without(TENSORS, "norm.weight") | {name: (4,)}) == [
        "tensor norm.weight is missing",
        f"tensor {name} [4] is left over",
    ]


@pytest.mark.parametrize("number", ["01", "-1", "1a", "{i}", "٣", " 1"])
def test_what_is_no_layer_number_does_not_match(number):
    faults = faults_of(TENSORS | {f"layer.{number}.dense.bias": (3,)})
    assert faults == [f"tensor layer.{number}.dense.bias [3] is left over"]


def test_the_shape_in_pytorch_has_no_layer_axis_and_is_transposed():
    def shape_of(rule, shape):
        return assignments([rule], {rule.flax: shape})[-1].shape

    kernel, bias = linear("l.{i}.q", "l.q")
    assert shape_of(kernel, (6, 4, 8)) == (8, 4)
    assert shape_of(bias, (6, 8)) == (8,)
    assert shape_of(linear("o", "o")[0], (4, 8)) == (8, 4)
    assert shape_of(Rule("e", "e"), (5, 4)) == (5, 4)
    assert shape_of(Rule("e", "e", Row(2, 9)), (4,)) == (9, 4)


def test_a_linear_layer_without_bias_has_no_rule_for_one():
    assert [rule.torch for rule in linear("a", "b", use_bias=False)] == ["a.weight"]


def test_stacked_layers_hold_the_transposed_tensors():
    tensors = {f"l.{i}.q.weight": numbers(4, 3, start=100 * i) for i in (0, 1)}
    tensors |= {f"l.{i}.q.bias": numbers(4, start=i) for i in (0, 1)}
    params = {"l.q.kernel": (2, 3, 4), "l.q.bias": (2, 4)}
    source = Tensors(tensors)
    assignments, faults = assign(source.shapes(), params, linear("l.{i}.q", "l.q"))
    assert faults == []
    kernel, bias = (fill(source, assignments[path], params[path], np.dtype(np.float32)) for path in params)
    for i in (0, 1):
        np.testing.assert_array_equal(kernel[i], tensors[f"l.{i}.q.weight"].T)
        np.testing.assert_array_equal(bias[i], tensors[f"l.{i}.q.bias"])


def test_the_order_of_tensors_in_the_file_does_not_matter():
    rules = [Rule("l.{i}", "l")]
    tensors = {f"l.{i}": numbers(2, start=10 * i) for i in (11, 2, 0, 10, 1, 3, 9, 4, 8, 5, 7, 6)}
    source = Tensors(tensors)
    assignments, faults = assign(source.shapes(), {"l": (12, 2)}, rules)
    assert faults == []
    filled = fill(source, assignments["l"], (12, 2), np.dtype(np.float32))
    np.testing.assert_array_equal(filled[:, 0], 10 * np.arange(12))


def test_filling_casts_to_the_dtype_asked_for():
    source = Tensors({"a": np.asarray([1.0, 2.5], np.float16)})
    assignments, _ = assign(source.shapes(), {"a": (2,)}, [Rule("a", "a")])
    filled = fill(source, assignments["a"], (2,), np.dtype(np.float32))
    assert filled.dtype == np.float32
    assert filled.tolist() == [1.0, 2.5]


def test_a_part_of_a_parameter_is_that_part_of_the_whole_and_little_more_is_read():
    tensors = {f"l.{i}.q.weight": numbers(150, 6, start=1000 * i) for i in range(4)}
    tensors |= {f"l.{i}.q.bias": numbers(150, start=i) for i in range(4)}
    shapes = {"l.q.kernel": (4, 6, 150), "l.q.bias": (4, 150)}
    source = Tensors(tensors)
    assignments, _ = assign(source.shapes(), shapes, linear("l.{i}.q", "l.q"))
    for path, index in (
        ("l.q.kernel", (slice(1, 3), slice(2, 5), slice(70, 140))),
        ("l.q.kernel", (slice(3, None), slice(None), slice(140, 150))),
        ("l.q.bias", (slice(0, 1), slice(7, 9))),
    ):
        for dtype in (np.dtype(np.float32), np.dtype("bfloat16")):
            source.sizes.clear()
            part = fill(source, assignments[path], shapes[path], dtype, index)
            assert sum(source.sizes) == part.size
            whole = fill(source, assignments[path], shapes[path], dtype)
            assert part.dtype == dtype
            np.testing.assert_array_equal(part, whole[index])


def test_filled_arrays_are_where_jax_takes_them_as_they_are():
    source = Tensors({"a": numbers(3, 5)})
    assignments, _ = assign(source.shapes(), {"a": (3, 5)}, [Rule("a", "a")])
    for _ in range(5):
        assert fill(source, assignments["a"], (3, 5), np.dtype(np.float32)).ctypes.data % 64 == 0


def test_one_row_of_a_matrix_is_read_without_the_others():
    rule = Rule("head.weight", "head", Row(2, 5))
    source = Tensors({"head.weight": numbers(5, 3)})
    assignments, faults = assign(source.shapes(), {"head": (3,)}, [rule])
    assert faults == []
    assert fill(source, assignments["head"], (3,), np.dtype(np.float32)).tolist() == [6, 7, 8]
    assert source.sizes == [3]


def test_a_row_inverts_only_where_it_was_the_whole_matrix():
    row = numbers(3)
    np.testing.assert_array_equal(Row(0, 1).to_torch(row), row[None])
    with pytest.raises(ValueError, match="only row 2 of 5"):
        Row(2, 5).to_torch(row)


@pytest.mark.parametrize("transform", [IDENTITY, TRANSPOSE])
def test_a_transform_inverts(transform):
    tensor = numbers(3, 5)
    read = transform.read(Tensors({"t": tensor}), "t")
    assert transform.to_torch_shape(read.shape) == tensor.shape
    np.testing.assert_array_equal(transform.to_torch(read), tensor)


RULES = (*layer_norm("norm", "norm"), *linear("layer.{i}.dense", "layers.dense"))
PARAMS = {"norm.scale": (4,), "norm.bias": (4,), "layers.dense.kernel": (2, 4, 3), "layers.dense.bias": (2, 3)}
TENSORS = {
    "norm.weight": (4,),
    "norm.bias": (4,),
    "layer.0.dense.weight": (3, 4),
    "layer.0.dense.bias": (3,),
    "layer.1.dense.weight": (3, 4),
    "layer.1.dense.bias": (3,),
}


def faults_of(tensors=TENSORS, params=PARAMS, rules=RULES, ignored=()):
    return assign(tensors, params, rules, ignored)[1]


def without(tensors, *names):
    return {name: shape for name, shape in tensors.items() if name not in names}


def test_a_table_that_fits_has_no_faults():
    assert faults_of() == []


def test_a_missing_tensor_is_a_fault():
    assert faults_of(without(TENSORS, "layer.1.dense.bias")) == ["tensor layer.1.dense.bias is missing"]


def test_a_left_over_tensor_is_a_fault():
    assert faults_of(TENSORS | {"lm_head.weight": (9, 4)}) == ["tensor lm_head.weight [9, 4] is left over"]


def test_a_misshapen_tensor_is_a_fault_with_both_shapes():
    assert faults_of(TENSORS | {"layer.0.dense.weight": (4, 3)}) == [
        "tensor layer.0.dense.weight has shape [4, 3], the config asks for [3, 4]"
    ]


def test_a_layer_too_many_is_a_fault():
    assert faults_of(TENSORS | {"layer.2.dense.bias": (3,)}) == ["tensor layer.2.dense.bias [3] is left over"]


def test_a_tensor_that_two_rules_take_is_a_fault():
    faults = faults_of(params=PARAMS | {"other": (4,)}, rules=(*RULES, Rule("norm.bias", "other")))
    assert faults == ["tensor norm.bias is used by 2 rules"]


def test_a_parameter_that_two_rules_fill_is_a_fault():
    faults = faults_of(TENSORS | {"norm.gamma": (4,)}, rules=(*RULES, Rule("norm.gamma", "norm.scale")))
    assert faults == ["parameter norm.scale [4] is filled by 2 rules instead of one"]


def test_a_tensor_for_a_parameter_that_the_model_has_not_is_a_fault():
    assert faults_of(params=without(PARAMS, "norm.bias")) == ["tensor norm.bias [4] is left over"]


def test_a_parameter_without_a_rule_is_a_fault():
    assert faults_of(params=PARAMS | {"extra": (2,)}) == ["parameter extra [2] is filled by 0 rules instead of one"]


def test_an_ignored_name_is_ignored_whole_only():
    tensors = TENSORS | {"position_ids": (1, 9)}
    assert faults_of(tensors, ignored=[r"position_ids"]) == []
    assert len(faults_of(tensors, ignored=[r"position_id"])) == 1
    assert len(faults_of(tensors | {"x.position_ids": (1, 9)}, ignored=[r"position_ids"])) == 1


def test_all_faults_are_found_at_once():
    faults = faults_of(
        without(TENSORS, "norm.weight", "layer.1.dense.weight")
        | {"layer.0.dense.bias": (7,), "pooler.weight": (4, 4), "layer.5.dense.bias": (3,)},
        params=PARAMS | {"other": (4,), "extra": (2,)},
        rules=(*RULES, Rule("norm.bias", "other")),
    )
    assert faults == [
        "tensor norm.bias is used by 2 rules",
        "parameter extra [2] is filled by 0 rules instead of one",
        "tensor norm.weight is missing",
        "tensor layer.1.dense.weight is missing",
        "tensor layer.0.dense.bias has shape [7], the config asks for [3]",
        "tensor pooler.weight [4, 4] is left over",
        "tensor layer.5.dense.bias [3] is left over",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_inverted_rules_give_back_every_tensor_bit_for_bit(tmp_path, name, dtype):
    folder = shutil.copytree(CASES / name, tmp_path / name)
    tensors = {key: tensor.astype(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    odd = np.asarray([-0.0, np.nan, np.inf, -np.inf, 1e-7, 6e4], np.float32).astype(dtype)
    for tensor in tensors.values():
        tensor.reshape(-1)[-len(odd) :] = odd[-tensor.size :]
    save_file(tensors, folder / "model.safetensors")

    checkpoint = open_torch(folder)
    place = SingleDeviceSharding(jax.devices()[0])
    params = load_arrays(checkpoint, np.dtype(dtype), dict.fromkeys(checkpoint.shapes(), place))
    back = TorchTensors(ArrayParameters(params), open_spec(str(folder)))
    assert sorted(back.shapes()) == sorted(tensors)
    for key, wanted in tensors.items():
        found = back.read(key)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()
