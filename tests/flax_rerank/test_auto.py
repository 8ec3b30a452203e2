"""FlaxAutoReranker: from a name or a folder to the right class, or to an error that says what would work."""

import json
import shutil
import sys
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from reference_cases import CASES

from flax_rerank import (
    AUTO_RERANKER_MAPPING,
    RERANKER_CLASS_MAPPING,
    FlaxAutoReranker,
    FlaxListwiseReranker,
    FlaxLLMReranker,
    FlaxReranker,
    LayerWiseFlaxLLMReranker,
    LightWeightFlaxLLMReranker,
    RerankerConfig,
    RerankerModelClass,
    auto,
)

CLASSES = {
    "encoder-only-base": FlaxReranker,
    "decoder-only-base": FlaxLLMReranker,
    "decoder-only-layerwise": LayerWiseFlaxLLMReranker,
    "decoder-only-lightweight": LightWeightFlaxLLMReranker,
    "listwise": FlaxListwiseReranker,
}
LOADABLE = {
    "BAAI/bge-reranker-base": FlaxReranker,
    "BAAI/bge-reranker-large": FlaxReranker,
    "BAAI/bge-reranker-v2-m3": FlaxReranker,
    "BAAI/bge-reranker-v2-gemma": FlaxLLMReranker,
    "BAAI/bge-reranker-v2-minicpm-layerwise": LayerWiseFlaxLLMReranker,
    "BAAI/bge-reranker-v2.5-gemma2-lightweight": LightWeightFlaxLLMReranker,
    "maidalun1020/bce-reranker-base_v1": FlaxReranker,
    "jinaai/jina-reranker-v2-base-multilingual": FlaxReranker,
    "cross-encoder/ettin-reranker-17m-v1": FlaxReranker,
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the BERT checkpoint under a name that says nothing, to be changed."""
    return shutil.copytree(CASES / "encoder-bert", tmp_path / "anything")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and nothing of it in the cache; gives the folder of the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return str(tmp_path / "cache")


@pytest.fixture
def unreachable(monkeypatch):
    """`unreachable(error)`: the hub fails in this way."""

    def fail_with(error):
        def snapshot_download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return fail_with


def load(name, **arguments):
    return FlaxAutoReranker.from_finetuned(str(name), devices="cpu:0", **arguments)


def test_it_is_not_made_by_calling_it():
    with pytest.raises(EnvironmentError, match="from_finetuned"):
        FlaxAutoReranker()


# The two mappings


def test_every_model_class_has_its_reranker():
    assert {key.value: value for key, value in RERANKER_CLASS_MAPPING.items()} == CLASSES
    assert set(RERANKER_CLASS_MAPPING) == set(RerankerModelClass)
    assert all(reranker.model_class == value for value, reranker in CLASSES.items())


def test_the_names_of_flagembedding_come_first():
    assert list(AUTO_RERANKER_MAPPING)[:10] == [
        "bge-reranker-base",
        "bge-reranker-large",
        "bge-reranker-v2-m3",
        "bge-reranker-v2-gemma",
        "bge-reranker-v2-minicpm-layerwise",
        "bge-reranker-v2.5-gemma2-lightweight",
        "jinaai/jina-reranker-v2-base-multilingual",
        "Alibaba-NLP/gte-multilingual-reranker-base",
        "maidalun1020/bce-reranker-base_v1",
        "jinaai/jina-reranker-v1-turbo-en",
    ]
    assert all(isinstance(config, RerankerConfig) for config in AUTO_RERANKER_MAPPING.values())


@pytest.mark.parametrize("form", ["{name}", "{last}", "other/{last}", "/models/{last}", "/models/{name}/", "./{last}"])
@pytest.mark.parametrize("name", LOADABLE)
def test_a_known_name_resolves_in_full_by_its_last_part_and_as_a_folder(name, form):
    assert auto.class_of_name(form.format(name=name, last=name.rpartition("/")[2])) is LOADABLE[name]


@pytest.mark.parametrize("form", ["{}/checkpoint-500", "/out/{}/checkpoint-12", "{}/checkpoint-500/"])
@pytest.mark.parametrize("name", LOADABLE)
def test_a_training_checkpoint_has_the_class_of_the_folder_above(name, form):
    assert auto.class_of_name(form.format(name)) is LOADABLE[name]
    assert auto.class_of_name(form.format(name.rpartition("/")[2])) is LOADABLE[name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/",
        "checkpoint-500",
        "bge-reranker",
        "bge-reranker-base2",
        "bge-reranker-base/extra",
        "BGE-reranker-base",
    ],
)
def test_other_names_say_nothing(name):
    assert auto.class_of_name(name) is None


# model_class


@pytest.mark.parametrize("model_class", ["encoder-only-base", RerankerModelClass.ENCODER_ONLY_BASE])
def test_model_class_may_be_a_string_or_a_member(folder, model_class):
    assert type(load(folder, model_class=model_class)) is FlaxReranker


@pytest.mark.parametrize("wrong", ["encoder", "ENCODER_ONLY_BASE", "", 3])
def test_a_wrong_model_class_is_refused_with_those_there_are(folder, wrong):
    with pytest.raises(ValueError, match="model_class") as caught:
        load(folder, model_class=wrong)
    for part in (repr(wrong), *CLASSES):
        assert part in str(caught.value)


@pytest.mark.parametrize("model_class", [value for value in CLASSES if value.startswith("decoder")])
def test_a_model_class_that_the_checkpoint_contradicts_is_refused(folder, model_class):
    with pytest.raises(ValueError, match=r"is a reranker of the kind encoder-only-base, not decoder"):
        load(folder, model_class=model_class)


@pytest.mark.parametrize("name", ["bge-reranker-v2-gemma", "jina-reranker-v2-base-multilingual"])
def test_model_class_decides_over_the_name(tmp_path, name):
    folder = shutil.copytree(CASES / "encoder-bert", tmp_path / name)
    assert type(load(folder, model_class="encoder-only-base")) is FlaxReranker


# A folder's own config.json


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder-bert", FlaxReranker),
        ("encoder-xlmr", FlaxReranker),
        ("decoder-llama", FlaxLLMReranker),
        ("layerwise-minicpm", LayerWiseFlaxLLMReranker),
        ("lightweight-gemma2", LightWeightFlaxLLMReranker),
    ],
)
@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_the_config_of_a_folder_names_the_class(name, expected):
    spec = auto.find_spec(str(CASES / name))
    assert auto.class_of(spec) is expected
    assert spec.settings.kept() == {}


def test_a_folder_of_any_name_loads(folder):
    assert type(load(folder)) is FlaxReranker


def test_a_config_that_names_no_class_is_refused_with_what_would_work(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BartForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="BartForConditionalGeneration") as caught:
        load(folder)
    for part in (*AUTO_RERANKER_MAPPING, *CLASSES):
        assert part in str(caught.value)


# What is missing


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "no/such/folder/at/all", "~/no such folder"])
@pytest.mark.parametrize("arguments", [{}, {"model_class": "encoder-only-base"}])
def test_a_folder_that_is_not_there_is_named(name, arguments):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, **arguments)
    assert name in str(caught.value)


def test_a_file_in_place_of_a_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match="is a file") as caught:
        load(folder / "model.safetensors")
    assert str(folder / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("arguments", [{}, {"model_class": "encoder-only-base"}])
@pytest.mark.parametrize(
    ("missing", "named"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "weights")],
)
def test_what_a_folder_lacks_is_named_and_where(folder, missing, named, arguments):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=named) as caught:
        load(folder, **arguments)
    assert missing in str(caught.value)
    assert str(folder) in str(caught.value)


# The hub


def test_an_unknown_name_is_refused_with_the_names_and_classes_there_are(offline):
    with pytest.raises(ValueError, match="someone/unknown") as caught:
        load("someone/unknown", cache_dir=offline)
    for part in (*AUTO_RERANKER_MAPPING, *CLASSES, "model_class"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["BAAI/bge-reranker-base", "bge-reranker-base"])
def test_without_the_hub_a_known_name_says_that_a_folder_works(offline, name):
    with pytest.raises(OSError, match="folder") as caught:
        load(name, cache_dir=offline)
    assert name in str(caught.value)
    assert "works without the hub" in str(caught.value)


def test_without_the_hub_a_model_class_does_not_help_an_unknown_name(offline):
    with pytest.raises(OSError, match=r"someone/unknown.*works without the hub"):
        load("someone/unknown", model_class="encoder-only-base", cache_dir=offline)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not in the cache\nand no hub"),
        ConnectionError("refused"),
        TimeoutError("too slow"),
        OSError(),
        HTTPError("the proxy said no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_however_the_hub_fails_the_model_is_named(unreachable, error):
    unreachable(error)
    with pytest.raises(OSError, match=r"BAAI/bge-reranker-base .*works without the hub") as caught:
        load("BAAI/bge-reranker-base")
    assert caught.value.__cause__ is error


def test_a_local_folder_is_loaded_without_asking_the_hub(unreachable, folder):
    unreachable(AssertionError("the hub was asked"))
    assert type(load(folder)) is FlaxReranker


def test_a_snapshot_of_the_hub_loads_from_the_cache_without_pickles(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, *, cache_dir, allow_patterns):
        asked.append((name, cache_dir, tuple(allow_patterns)))
        return str(CASES / "encoder-bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert type(load("BAAI/bge-reranker-base", cache_dir=str(tmp_path))) is FlaxReranker
    assert type(load("someone/unknown", cache_dir=str(tmp_path))) is FlaxReranker
    assert {(name, cache) for name, cache, _ in asked} == {
        ("BAAI/bge-reranker-base", str(tmp_path)),
        ("someone/unknown", str(tmp_path)),
    }
    for _, _, patterns in asked:
        assert "config.json" in patterns
        assert not any(pattern.endswith(".bin") for pattern in patterns)
        assert not any(pattern in ("*", "*.py") for pattern in patterns)


def test_a_flax_checkpoint_loads_from_the_hub_with_its_settings(monkeypatch, tmp_path):
    """Also under a known name, and with nothing but the files that were asked for."""
    load(CASES / "encoder-bert", max_length=64, normalize=True).save(tmp_path / "saved")

    def snapshot_download(name, *, cache_dir, allow_patterns):
        files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
        for file in files:
            path = file.relative_to(tmp_path / "saved")
            if any(fnmatch(path.as_posix(), pattern) for pattern in allow_patterns):
                (tmp_path / "snapshot" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, tmp_path / "snapshot" / path)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for name in ("BAAI/bge-reranker-base", "someone/unknown"):
        model = load(name)
        assert (type(model), model.settings.max_length, model.settings.normalize) == (FlaxReranker, 64, True)


def test_pickles_are_asked_for_only_where_there_are_no_safetensors(monkeypatch, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    asked = []

    def snapshot_download(name, *, cache_dir, allow_patterns):
        asked.append(any(pattern.endswith(".bin") for pattern in allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="safetensors"):
        load("BAAI/bge-reranker-base")
    assert asked == [False, True]


# Arguments


def test_an_argument_that_the_class_has_not_is_a_type_error(folder):
    with pytest.raises(TypeError, match="use_fp8"):
        load(folder, use_fp8=True)


def test_arguments_reach_the_class(folder):
    model = load(folder, max_length=64, batch_size=3, normalize=True, use_bf16=True)
    settings = model.settings
    assert (settings.max_length, settings.batch_size, settings.normalize) == (64, 3, True)
    assert model.dtype.name == "bfloat16"


@pytest.mark.parametrize("trust_remote_code", [None, True, False])
def test_no_remote_code_runs_whatever_trust_remote_code_says(folder, trust_remote_code):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')\n")
    assert type(load(folder, trust_remote_code=trust_remote_code)) is FlaxReranker
    assert "evil" not in sys.modules


def test_a_peft_path_that_is_no_path_is_named():
    with pytest.raises(TypeError, match="peft_path is 1; it must be the path or the name of an adapter"):
        FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"), peft_path=1)
