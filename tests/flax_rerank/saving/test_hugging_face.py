"""A PyTorch checkpoint that became a Flax one comes back bit for bit, or an error says why it cannot."""

import errno
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from reference_cases import CASES
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError
from flax_rerank.cli import main
from flax_rerank.conversion import convert, export_checkpoint
from flax_rerank.conversion.check import check_tensors
from flax_rerank.convert import torch_files
from flax_rerank.convert.peft import merge_adapter
from flax_rerank.convert.torch_files import INDEX, SINGLE, SafetensorsFiles

pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is")  # true of some of the small tokenizers
FAMILIES = [
    *(
        "encoder-bert",
        "encoder-xlmr",
        "encoder-roberta",
        "encoder-electra",
        "encoder-distilbert",
        "encoder-deberta-v2",
    ),
    *("encoder-jina-v1", "encoder-jina-v2", "encoder-gte-new", "encoder-gte-new-ntk"),
    *("encoder-modernbert-cls", "encoder-modernbert-mean", "encoder-ettin"),
    *("decoder-gemma", "decoder-gemma2", "decoder-llama", "decoder-mistral", "decoder-qwen2", "decoder-qwen3"),
    *("layerwise-minicpm", "layerwise-raw-single", "lightweight-gemma2"),
    *(
        "listwise-jina-v3",
        "logit-qwen3-reranker",
        "logit-mxbai-v2",
        "logit-zerank",
        "logit-ctxl",
        "logit-ctxl-mistral",
    ),
    *("logit-st-module", "logit-st-module-single", "seqcls-llama", "seqcls-llama-bidirectional", "seqcls-qwen3"),
    *("seqcls-st-message", "monot5"),
]
FLOAT32, FLOAT16, BFLOAT16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def tensors_in(folder):
    """The tensors in a folder, and in those of its modules."""
    return {
        f"{file.parent.relative_to(folder) / name}": array
        for file in folder.rglob("*.safetensors")
        for name, array in load_file(file).items()
    }


def bits(tensors):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A Flax checkpoint of the BERT case; not to be changed."""
    path = tmp_path_factory.mktemp("bert") / "flax"
    convert(str(CASES / "encoder-bert"), path)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Flax checkpoint of the Llama case with its whole head; not to be changed."""
    path = tmp_path_factory.mktemp("llama") / "flax"
    convert(str(CASES / "decoder-llama"), path, keep_head=True)
    return path


@pytest.fixture
def source(tmp_path):
    """A copy of the BERT case, to be changed."""
    return shutil.copytree(CASES / "encoder-bert", tmp_path / "source")


def store_as(folder, dtype, named=None):
    """Cast the tensors of a PyTorch folder, and name a dtype in its config.json."""
    cast = {name: array.astype(dtype) for name, array in load_file(folder / SINGLE).items()}
    save_file(cast, folder / SINGLE)
    config = config_of(folder) | {"torch_dtype": named or dtype.name}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return cast


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_bit_for_bit(tmp_path, name):
    convert(str(CASES / name), tmp_path / "flax", keep_head=True)
    assert check_tensors(CASES / name, tmp_path / "flax").faults == ()
    out = tmp_path / "out"
    source = tensors_in(CASES / name)
    assert export_checkpoint(tmp_path / "flax", out, max_shard_size=100_000) == next(iter(source.values())).dtype
    assert bits(tensors_in(out)) == bits(source)
    for file in (path.relative_to(CASES / name) for path in (CASES / name).rglob("*.json")):
        if file.name.startswith(("tokenizer", "special_tokens_map")):
            assert (out / file).read_bytes() == (CASES / name / file).read_bytes()
        elif file.name not in ("expected.json", "generation_config.json") and "adapter" not in file.parts:
            assert json.loads((out / file).read_text()) == json.loads((CASES / name / file).read_text()), file
    for file in (path.relative_to(CASES / name) for path in (CASES / name).rglob("*.jinja")):
        assert (out / file).read_bytes() == (CASES / name / file).read_bytes()
    index = json.loads((out / INDEX).read_text())
    in_root = {tensor: array for file in out.glob("*.safetensors") for tensor, array in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in in_root.values())
    assert index["weight_map"] == {
        tensor: file.name for file in out.glob("*.safetensors") for tensor in load_file(file)
    }
    assert len(set(index["weight_map"].values())) > 1


def test_one_file_is_the_source_file_to_the_byte(bert, tmp_path):
    export_checkpoint(bert, tmp_path / "out")
    assert (tmp_path / "out" / SINGLE).read_bytes() == (CASES / "encoder-bert" / SINGLE).read_bytes()


def test_shards_are_as_large_as_allowed_and_numbered(bert, tmp_path):
    limit = 60_000
    export_checkpoint(bert, tmp_path / "out", max_shard_size=limit)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    count = len(shards)
    assert [file.name for file in shards] == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for shard in shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit


def test_a_model_in_memory_is_given_back(reranker, tmp_path):
    reranker("encoder-bert").save_pretrained(tmp_path / "out")
    assert bits(tensors_in(tmp_path / "out")) == bits(tensors_in(CASES / "encoder-bert"))


def test_a_merged_adapter_is_in_the_tensors(tmp_path):
    case = CASES / "lora-gemma"
    convert(str(case), tmp_path / "flax", peft_path=str(case / "adapter"))
    export_checkpoint(tmp_path / "flax", tmp_path / "out")
    merged = merge_adapter(SafetensorsFiles(case, [SINGLE]), case / "adapter")
    found = tensors_in(tmp_path / "out")
    assert bits(found) == bits({name: merged.read(name).astype(FLOAT32) for name in merged.shapes()})
    assert bits(found) != bits(load_file(case / SINGLE))


def test_a_head_that_was_not_kept_is_missed(reranker, tmp_path):
    convert(str(CASES / "decoder-llama"), tmp_path / "flax")
    with pytest.raises(
        ValueError, match=r"one row of lm_head.weight \[\d+, 32\]: convert the source with --keep-head"
    ):
        export_checkpoint(tmp_path / "flax", tmp_path / "out")
    with pytest.raises(ValueError, match="--keep-head"):
        reranker("decoder-llama").save_pretrained(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_a_kept_head_that_is_damaged_is_named(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "flax")
    kept = (folder / "kept.safetensors").read_bytes()
    (folder / "kept.safetensors").write_bytes(kept[:-8])
    with pytest.raises(CheckpointError, match=r"kept.safetensors is truncated"):
        export_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_half_precision_comes_back_as_it_was(source, tmp_path, dtype):
    tensors = store_as(source, dtype)
    convert(str(source), tmp_path / "flax")
    assert export_checkpoint(tmp_path / "flax", tmp_path / "out") == dtype
    assert bits(tensors_in(tmp_path / "out")) == bits(tensors)
    assert config_of(tmp_path / "out") == config_of(source)


def test_no_bit_is_lost_to_a_config_that_names_a_smaller_dtype(source, tmp_path):
    tensors = store_as(source, FLOAT32, named="bfloat16")
    convert(str(source), tmp_path / "flax")
    assert export_checkpoint(tmp_path / "flax", tmp_path / "out") == FLOAT32
    assert bits(tensors_in(tmp_path / "out")) == bits(tensors)
    assert config_of(tmp_path / "out")["torch_dtype"] == "float32"


def test_another_dtype_is_written_when_it_is_asked_for(bert, tmp_path):
    assert export_checkpoint(bert, tmp_path / "out", dtype="bfloat16") == BFLOAT16
    wanted = {name: array.astype(BFLOAT16) for name, array in load_file(CASES / "encoder-bert" / SINGLE).items()}
    assert bits(tensors_in(tmp_path / "out")) == bits(wanted)
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"


def test_a_number_beyond_the_dtype_is_an_error(source, tmp_path):
    tensors = load_file(source / SINGLE)
    tensors["classifier.weight"][0, 0] = 1e30
    save_file(tensors, source / SINGLE)
    convert(str(source), tmp_path / "flax")
    with pytest.raises(ValueError, match=r"classifier.weight has values beyond float16"):
        export_checkpoint(tmp_path / "flax", tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="'int8' is not one of float32, bfloat16, float16"):
        export_checkpoint(tmp_path / "flax", tmp_path / "out", dtype="int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flax", "source"]


def test_only_an_export_is_overwritten_and_only_when_asked(bert, tmp_path):
    out = tmp_path / "out"
    export_checkpoint(bert, out, max_shard_size=60_000)
    with pytest.raises(FileExistsError, match="out exists; pass overwrite"):
        export_checkpoint(bert, out)
    export_checkpoint(bert, out, overwrite=True)
    assert [file.name for file in out.glob("*.safetensors")] == [SINGLE]  # of the shards none is left
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"it holds notes.txt, which is not part of an exported model"):
        export_checkpoint(bert, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    for config in ('{"name": "my application"}', "[]", "mine"):
        (out / "config.json").write_text(config)
        with pytest.raises(FileExistsError, match=r"out is not overwritten: .* says that it is an exported model"):
            export_checkpoint(bert, out, overwrite=True)
        assert (out / "config.json").read_text() == config
    assert (out / SINGLE).is_file()


def test_a_full_disk_leaves_no_folder(bert, tmp_path, monkeypatch):
    def full(path, tensors, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_files, "write_safetensors", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out'"):
        export_checkpoint(bert, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_flax_checkpoint_is_refused(bert, tmp_path):
    with pytest.raises(ValueError, match="encoder-bert is not a Flax checkpoint"):
        export_checkpoint(CASES / "encoder-bert", tmp_path / "out")
    folder = shutil.copytree(bert, tmp_path / "flax")
    with pytest.raises(ValueError, match="lies in the source"):
        export_checkpoint(folder, folder / "out")
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(CheckpointError, match=r"format version is 99, .* upgrade flax-rerank"):
        export_checkpoint(folder, tmp_path / "out")
    config["source_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"parameter layers.* has shape \[2, .* asks for \[3, "):
        export_checkpoint(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_the_command_goes_back(llama, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", "--to", "pytorch", str(llama), str(out)]) == 0
    assert "tensors in float32" in capsys.readouterr().out
    assert bits(tensors_in(out)) == bits(tensors_in(CASES / "decoder-llama"))
    assert main(["convert", "--to", "pytorch", str(llama), str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", "--to", "pytorch", str(llama), str(out), "--overwrite", "--dtype", "bfloat16"]) == 0
    assert tensors_in(out)["lm_head.weight"].dtype == BFLOAT16
    for option in (["--verify"], ["--keep-head"], ["--max-length", "64"]):
        assert main(["convert", "--to", "pytorch", str(llama), str(tmp_path / "no"), *option]) == 1
        assert f"{option[0]} is not an option for --to pytorch" in capsys.readouterr().err
