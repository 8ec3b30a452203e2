"""Weights in 8 bits: how near they are, that any part can be read, and that a wrong scale is found and named."""

import shutil

import jax
import numpy as np
import pytest
from reference_cases import CASES
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.checkpoint.params import write_params
from flax_rerank.conversion import convert, export_checkpoint
from flax_rerank.conversion.check import check_tensors
from flax_rerank.conversion.inspect import inspect_folder
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import ArrayParameters, stacked_in
from flax_rerank.quantization import QuantizedParams, quantize, quantized_in
from flax_rerank.spec import open_spec

LLAMA = CASES / "decoder-llama"
KERNEL = "layers.mlp.down_proj.kernel"
pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")


def load(folder, **settings):
    return FlaxAutoReranker.from_finetuned(str(folder), **{"devices": "cpu:0", "dtype": "float32"} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "flax"
    convert(str(LLAMA), path, dtype="int8", keep_head=True)
    return path


def test_numbers_are_the_nearest_ones_to_each_channel():
    weights = np.array([[0.5, 0.0, -3.0], [-1.0, 0.0, 1e-3]], np.float32)
    numbers, scales = quantize("layers.a.kernel", weights)
    np.testing.assert_array_equal(numbers, [[64, 0, -127], [-127, 0, 0]])
    np.testing.assert_array_equal(scales, np.float32([1 / 127, 1, 3 / 127]))
    with pytest.raises(ValueError, match=r"parameter a\.embedding has weights that are not finite"):
        quantize("a.embedding", np.array([[np.inf, 1]]))


def test_kernels_and_embeddings_are_rounded_and_all_else_is_as_it_was(folder):
    source, found = load(LLAMA).params, load(folder).params
    quantized = set(quantized_in(open_spec(str(LLAMA)).module(FLOAT32)))
    assert {KERNEL, "embed_tokens.embedding"} < quantized
    for path, array in source.items():
        error = np.abs(found[path] - array)
        assert (error.max() > 0) == (path in quantized)
        if path in quantized:
            largest = np.abs(array).max(axis=-1 if path.endswith("embedding") else -2, keepdims=True)
            assert (error <= largest / 254 * 1.0001).all()
    facts = inspect_folder(folder).facts
    assert facts["dtypes"]["int8"] == len(quantized)
    assert facts["parameters"] == sum(array.size for array in source.values())


def test_each_device_multiplies_its_part(folder):
    whole, split = load(folder), load(folder, devices=None, mesh="data=4,model=2", dtype="bfloat16")
    spec = open_spec(str(folder))
    stored = spec.weights(spec.module(FLOAT32))
    for path, array in split.params.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(whole.params[path]).astype(array.dtype))
        assert len(array.sharding.device_set) == 8
    part = stored.read(KERNEL, np.dtype(np.float32), (1, slice(2, 4), slice(3, 9)))
    np.testing.assert_array_equal(part, np.asarray(whole.params[KERNEL])[1, 2:4, 3:9])


def test_a_saved_model_is_that_which_is_converted_and_goes_back_to_pytorch(folder, tmp_path):
    load(LLAMA).save(tmp_path / "saved", dtype="int8")
    export_checkpoint(folder, tmp_path / "pytorch")
    wanted = jax.tree.map(np.asarray, load(folder).params)
    for other in ("saved", "pytorch"):
        for path, array in load(tmp_path / other).params.items():
            np.testing.assert_array_equal(np.asarray(array), wanted[path])


def test_tensors_are_compared_with_the_source_quantized_again(folder, tmp_path):
    assert check_tensors(LLAMA, folder).verdict == "equal"
    source = shutil.copytree(LLAMA, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.01
    save_file(tensors, source / "model.safetensors")
    (fault,) = check_tensors(source, folder).faults
    assert "tensor model.layers.1.mlp.down_proj.weight differs from the source by up to 0.0" in fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda scale: scale[:, :-1], r"down_proj\.kernel_scale is \[2, 31\] float32, for .* it must be \[2, 32\]"),
        (lambda scale: scale.astype(np.float16), r"down_proj\.kernel_scale is \[2, 32\] float16"),
        (lambda scale: -scale, r"down_proj\.kernel_scale has values that are not positive numbers"),
        (lambda scale: scale * np.float32("nan"), r"down_proj\.kernel_scale has values that are not positive"),
        (None, r"down_proj\.kernel_scale is missing: .* is int8"),
    ],
)
def test_a_wrong_scale_is_named(folder, tmp_path, change, fault):
    spec = open_spec(str(LLAMA))
    module = spec.module(FLOAT32)
    quantized = QuantizedParams(spec.weights(module), module)
    arrays = {path: quantized.read(path, dtype) for path, dtype in quantized.dtypes().items()}
    scale = arrays.pop(f"{KERNEL}_scale")
    if change is not None:
        arrays[f"{KERNEL}_scale"] = change(scale)
    stacked = {path for path in arrays if path.removesuffix("_scale") in stacked_in(module)}
    dtypes = {path: array.dtype for path, array in arrays.items()}
    write_params(tmp_path / "params", ArrayParameters(arrays), dtypes, stacked)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=fault):
        load(tmp_path)
