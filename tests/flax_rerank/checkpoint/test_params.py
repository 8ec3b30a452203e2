"""The parameters on disk: written leaf by leaf, read in any part and dtype, and damage is an error."""

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from flax_rerank import CheckpointError
from flax_rerank.checkpoint import params as params_module
from flax_rerank.checkpoint.params import StoredParams, chunk_bytes, write_params


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3584, 14336), 4 << 20),
        ((256000, 3584), 4 << 20),
        ((122753, 2304), 122753 * 2304 * 2),  # a prime
        ((30522, 768), 5087 * 768 * 2),
        ((7,), 4 << 20),
    ],
)
def test_leaves_are_cut_into_chunks_where_their_axes_divide(shape, size):
    assert chunk_bytes(shape, np.dtype("bfloat16")) == size


class Arrays:
    """Parameters in a dictionary; notes the sizes of the parts that are read."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.sizes = []

    def shapes(self):
        return {path: array.shape for path, array in self.arrays.items()}

    def read(self, path, dtype, index=()):
        part = self.arrays[path][index].astype(dtype)
        self.sizes.append(part.nbytes)
        return part


def test_a_stack_is_written_layer_by_layer_and_read_in_any_part_and_dtype(tmp_path, monkeypatch):
    monkeypatch.setattr(params_module, "GROUP_BYTES", 1000)
    arrays = {"a.b": np.arange(12 * 8 * 16, dtype=np.float32).reshape(12, 8, 16), "c": np.arange(9, dtype=np.float32)}
    source = Arrays(arrays)
    written = []
    write_params(tmp_path / "params", source, dict.fromkeys(arrays, np.dtype(np.float32)), {"a.b"}, written.append)
    assert source.sizes == [8 * 16 * 4] * 12 + [9 * 4]
    assert sum(written) == sum(array.nbytes for array in arrays.values())
    assert max(written) <= 1000
    stored = StoredParams(tmp_path / "params")
    assert stored.shapes() == source.shapes()
    assert stored.dtypes() == dict.fromkeys(arrays, np.dtype(np.float32))
    for path, index in (("a.b", (11, ..., slice(4, 8))), ("a.b", (slice(1, 3), slice(2, 8))), ("a.b", ()), ("c", ())):
        part = stored.read(path, np.dtype("bfloat16"), index)
        assert part.dtype.name == "bfloat16"
        np.testing.assert_array_equal(part, arrays[path][index].astype(part.dtype))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("files", "what"),
    [
        ("state/_METADATA", "params/ is damaged"),
        ("state/d/*", "params/ is damaged"),
        ("state/*/d/*", r"parameter a\.b in params/ is damaged \(.*Error reading"),
    ],
)
def test_damage_is_found_without_a_manifest_too(tmp_path, half, files, what):
    write_params(tmp_path / "params", Arrays({"a.b": np.ones((64, 64))}), {"a.b": np.dtype(np.float32)}, set())
    for path in (tmp_path / "params").glob(files):
        data = path.read_bytes()
        path.unlink()
        if half:
            path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be loaded:\n  - {what}"):
        StoredParams(tmp_path / "params").read("a.b", np.dtype(np.float32))


def test_metadata_of_too_many_brackets_is_damage(tmp_path):
    write_params(tmp_path / "params", Arrays({"a": np.ones(3)}), {"a": np.dtype(np.float32)}, set())
    (tmp_path / "params" / "_CHECKPOINT_METADATA").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"params/ is damaged \(.*recursion"):
        StoredParams(tmp_path / "params")


def test_a_disk_that_fills_up_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.partial, "save", full)
    with pytest.raises(OSError, match=r"orbax could not write .*No space left.*: '.*/params'"):
        write_params(tmp_path / "params", Arrays({"a": np.zeros(3)}), {"a": np.dtype(np.float32)}, set())
