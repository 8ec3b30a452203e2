"""`flax-rerank inspect`: what a folder is, and every reason why it would not load, without reading a weight."""

import json
import shutil
from collections import Counter

import pytest
from reference_cases import CASES
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker
from flax_rerank.checkpoint import params
from flax_rerank.cli import main
from flax_rerank.conversion import convert
from flax_rerank.conversion.inspect import inspect_folder
from flax_rerank.convert.torch_files import PickleFiles, SafetensorsFiles

pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is")  # true of some of the small tokenizers
OTHER_FIELDS = {
    "encoder-distilbert": ("n_layers", "dim", "n_heads", "vocab_size"),
    "monot5": ("num_layers", "d_model", "num_heads", "vocab_size"),
}
NAMES = sorted(path.parent.name for path in CASES.glob("*/config.json"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A Flax checkpoint of the Llama case with its whole head; not to be changed."""
    path = tmp_path_factory.mktemp("converted") / "flax"
    convert(str(CASES / "decoder-llama"), path, keep_head=True, prompt="Good?")
    return path


@pytest.fixture
def flax(converted, tmp_path):
    """A Flax checkpoint, to be changed."""
    return shutil.copytree(converted, tmp_path / "flax")


@pytest.fixture
def torch(tmp_path):
    """A copy of the BERT case, to be changed."""
    return shutil.copytree(CASES / "encoder-bert", tmp_path / "torch")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_would_load_and_no_weight_is_read(monkeypatch, name):
    def read(self, *args):
        raise AssertionError("a weight is read")

    monkeypatch.setattr(SafetensorsFiles, "read", read)
    found = inspect_folder(CASES / name)
    assert found.reasons == []
    files = [file for file in (CASES / name).rglob("*.safetensors") if "adapter" not in file.name]
    tensors = {(file, tensor): array for file in files for tensor, array in load_file(file).items()}
    config = json.loads((CASES / name / "config.json").read_text())
    assert found.facts["format"] == "PyTorch"
    assert found.facts["architecture"] == config["architectures"][0]
    assert found.facts["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert found.facts["dtypes"] == Counter(str(tensor.dtype) for tensor in tensors.values())
    assert found.facts["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    fields = OTHER_FIELDS.get(name, ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"))
    facts = ("layers", "hidden_size", "attention_heads", "vocabulary")
    assert [found.facts[fact] for fact in facts] == [config[field] for field in fields]


def test_positions_are_those_that_tokens_can_take():
    assert inspect_folder(CASES / "encoder-xlmr").facts["positions"] == 512  # of 514
    assert inspect_folder(CASES / "decoder-gemma").facts["positions"] == 8192


def test_layers_with_heads_are_listed():
    assert inspect_folder(CASES / "lightweight-gemma2").facts["scores_after_layers"] == [2, 3, 4, 5, 6]


def test_a_flax_checkpoint(converted):
    found = inspect_folder(converted, check=True)
    assert found.reasons == []
    facts = found.facts
    assert facts["format"] == "Flax, version 3"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["class"] == "FlaxLLMReranker"
    assert facts["scoring"] == {"prompt": "Good?"}
    assert facts["source"] == "decoder-llama"
    assert facts["whole_head_kept"] is True
    assert set(facts["dtypes"]) == {"float32"}
    stored = load_file(CASES / "decoder-llama" / "model.safetensors")
    rest = sum(tensor.size for name, tensor in stored.items() if name != "lm_head.weight")
    assert facts["parameters"] == rest + stored["lm_head.weight"].shape[1]


def test_all_reasons_are_given_at_once(torch):
    tensors = load_file(torch / "model.safetensors")
    del tensors["classifier.weight"]
    tensors["extra.weight"] = tensors["classifier.bias"]
    save_file(tensors, torch / "model.safetensors")
    (torch / "tokenizer.json").write_text("{")
    found = inspect_folder(torch)
    assert len(found.reasons) == 3
    assert "tensor classifier.weight is missing" in found.reasons
    assert any("extra.weight [1] is left over" in reason for reason in found.reasons)
    assert any("tokenizer.json cannot be read" in reason for reason in found.reasons)
    with pytest.raises(ValueError, match=r"tokenizer.json"):
        FlaxAutoReranker.from_finetuned(str(torch))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rotary_pct": 0.25}, "rotary_pct = 0.25 is not understood"),
        ({"architectures": ["BertModel"]}, "BertModel is an embedding model"),
        ({"architectures": ["BartForConditionalGeneration"]}, "BartForConditionalGeneration is not covered"),
        ({"id2label": {"0": "no", "1": "yes"}}, "a reranker has a head with one label; config.json has 2"),
        ({"hidden_act": "tanhshrink"}, "tanhshrink"),
        ({"num_hidden_layers": None}, "config.json: num_hidden_layers is missing"),
        ({"hidden_size": 48}, "the config asks for"),
        ({"hidden_size": "32"}, "config.json: hidden_size is '32'; it must be a whole number from 1 to 1,048,576"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number from 1"),
        ({"architectures": None, "model_type": "bert"}, "does not say which kind of reranker it is"),
        ({"max_position_embeddings": 128}, "has shape [512, 32], the config asks for [128, 32]"),
    ],
)
def test_a_config_that_would_not_load_says_why(torch, changes, expected):
    change_config(torch, **changes)
    assert expected in "\n".join(inspect_folder(torch).reasons)


def test_too_few_positions_for_the_class_are_a_reason(torch):
    tensors = load_file(torch / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    save_file(tensors | {name: tensors[name][:128].copy()}, torch / "model.safetensors")
    change_config(torch, max_position_embeddings=128)
    assert inspect_folder(torch).reasons == [
        "max_length 512 makes inputs of up to 512 tokens with all that is put around query and passage; "
        "the model has 128 positions (max_position_embeddings)"
    ]


def test_the_name_and_the_config_are_both_shown(torch):
    folder = torch.rename(torch.with_name("bge-reranker-v2-gemma"))
    found = inspect_folder(folder)
    assert found.facts["class_by_name"] == "FlaxLLMReranker"
    assert found.facts["class_by_config"] == "FlaxReranker"
    assert "is a reranker of the kind encoder-only-base, not decoder-only-base" in found.reasons[0]


def test_shards_are_listed_and_a_missing_one_is_named(converted, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["convert", "--to", "pytorch", str(converted), str(folder)]) == 0
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = inspect_folder(folder)
    assert found.reasons == []
    assert found.facts["files"] == ["model.safetensors.index.json", *sorted(set(files.values()))]
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert inspect_folder(folder).reasons == ["model-00002-of-00002.safetensors is missing"]


def test_half_a_file_is_named_and_the_rest_is_told(torch):
    data = (torch / "model.safetensors").read_bytes()
    (torch / "model.safetensors").write_bytes(data[: len(data) // 2])
    found = inspect_folder(torch)
    assert found.facts["layers"] == 2
    assert ["model.safetensors is truncated or corrupt" in reason for reason in found.reasons] == [True]


def test_pickled_weights_without_torch_ask_for_it(torch, monkeypatch):
    def no_torch(self, folder, files):
        raise ImportError("takes torch to read safely")

    monkeypatch.setattr(PickleFiles, "__init__", no_torch)
    (torch / "model.safetensors").rename(torch / "pytorch_model.bin")
    assert inspect_folder(torch).reasons == ["takes torch to read safely"]


def test_an_adapter_is_told_with_what_to_do(tmp_path, capsys):
    folder = CASES / "lora-llama" / "adapter"
    assert main(["inspect", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "PEFT adapter" in shown
    assert f"peft_path='{folder}'" in shown


def test_what_is_missing_from_a_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in inspect_folder(tmp_path / "empty").reasons[0]
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "config.json is not JSON" in inspect_folder(tmp_path / "empty").reasons[0]
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        inspect_folder(tmp_path / "nowhere")


def test_a_damaged_flax_checkpoint_says_what_is_wrong(flax):
    def reasons():
        return "\n".join(inspect_folder(flax).reasons)

    change_config(flax, format_version=99)
    assert "upgrade flax-rerank" in reasons()
    config = json.loads((flax / "config.json").read_text())
    source = config["source_config"]
    change_config(flax, format_version=3, source_config=source | {"num_hidden_layers": 3})
    assert "has shape [2, 32], the config asks for [3, 32]" in reasons()
    change_config(flax, source_config=source | {"of_tomorrow": 1})
    assert "of_tomorrow = 1 is not understood" in reasons()
    change_config(flax, model_class="unheard-of", source_config=source)
    assert "unheard-of" in reasons()
    change_config(flax, model_class="encoder-only-base")
    assert "scoring: prompt is not a setting of the model" in reasons()
    change_config(flax, model_class="decoder-only-base", head_tokens=[7])
    assert "has the rows of the tokens (7,)" in reasons()
    change_config(flax, head_tokens=config["head_tokens"])
    assert reasons() == ""
    change_config(flax, source_config=None)
    assert "config.json: source_config must be an object" in reasons()
    change_config(flax, source_config=config["source_config"])
    (flax / "manifest.json").rename(flax / "elsewhere.json")
    assert reasons() == ""  # it loads without
    (flax / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in reasons()
    (flax / "elsewhere.json").rename(flax / "manifest.json")
    data = max((flax / "params").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    data.unlink()
    assert f"{data.relative_to(flax).as_posix()} is missing" in reasons()
    shutil.rmtree(flax / "params")
    (flax / "tokenizer.json").unlink()
    assert "looked for params/" in reasons()
    assert "tokenizer" in reasons()


def test_hashes_are_compared_when_asked(flax, capsys, monkeypatch):
    monkeypatch.setattr(params, "SMALL", 0)  # those of small files always are
    data = max((flax / "params").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    data.write_bytes(flipped)
    assert main(["inspect", str(flax)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(flax), "--check"]) == 1
    assert f"{data.relative_to(flax).as_posix()} is damaged: its sha256" in capsys.readouterr().out
    assert main(["inspect", str(CASES / "encoder-bert"), "--check"]) == 1
    assert "has no manifest to check" in capsys.readouterr().err


def test_the_command_prints_for_people_and_for_machines(capsys):
    folder = str(CASES / "encoder-bert")
    assert main(["inspect", folder]) == 0
    shown = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    assert ["parameters", "57,089"] in [[part.strip() for part in line] for line in shown]
    assert shown[-1] == ["it would load"]
    assert main(["inspect", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["loads"], found["reasons"]) == (57089, True, [])


@pytest.mark.parametrize(
    ("mark", "truncation"),
    [
        ({}, "only_second"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "longest_first"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "longest_first"),
    ],
)
def test_texts_are_cut_as_by_the_library_that_published_the_checkpoint(tmp_path, mark, truncation):
    folder = shutil.copytree(CASES / "encoder-bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | mark))
    assert inspect_folder(folder).facts["truncation"] == truncation
    convert(str(folder), tmp_path / "flax")
    assert inspect_folder(tmp_path / "flax").facts["truncation"] == truncation
