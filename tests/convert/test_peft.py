"""LoRA adapters made with numpy: what merging gives, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from reference_cases import CASES, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.conversion import convert
from flax_rerank.conversion.check import check_tensors
from flax_rerank.convert import peft
from flax_rerank.convert.peft import merge_adapter
from flax_rerank.convert.torch_files import open_torch_files

BASE = CASES / "decoder-llama"
PAIRS = [load_case("decoder-llama").pairs[i] for i in (0, 2, 5)]
# As PEFT 0.14 writes it.
CONFIG = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "base",
    "bias": "none",
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
Q0, Q1 = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
V1 = "model.layers.1.self_attn.v_proj"
DOWN1 = "model.layers.1.mlp.down_proj"
EMBEDDINGS = "model.embed_tokens"


@pytest.fixture(scope="module")
def base():
    return load_file(BASE / "model.safetensors")


def low_rank(base, module, rank=4, seed=0):
    """A and B of one linear layer, by PEFT's names."""
    rng = np.random.default_rng([seed, len(module)])
    rows, columns = base[f"{module}.weight"].shape
    return {
        f"base_model.model.{module}.lora_A.weight": rng.standard_normal((rank, columns), dtype=np.float32) * 0.1,
        f"base_model.model.{module}.lora_B.weight": rng.standard_normal((rows, rank), dtype=np.float32) * 0.1,
    }


def product(tensors, module):
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return b @ a


def write_adapter(folder, tensors, **changes):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged_tensors(folder):
    source = merge_adapter(open_torch_files(BASE), folder)
    return {name: source.read(name) for name in source.shapes()}


def assert_merged(folder, base, updates):
    """The tensors of `updates` are the base's plus these, and all others are the base's bit for bit."""
    merged = merged_tensors(folder)
    assert merged.keys() == base.keys()
    for name, tensor in base.items():
        if name in updates:
            np.testing.assert_allclose(merged[name], tensor + updates[name], rtol=0, atol=1e-6)
            assert np.abs(merged[name] - tensor).max() > 1e-3
        else:
            np.testing.assert_array_equal(merged[name], tensor)


# ---- what merging gives


def test_a_plain_adapter_adds_alpha_over_rank_times_the_product(base, tmp_path):
    tensors = low_rank(base, Q0) | low_rank(base, Q1, seed=1) | low_rank(base, DOWN1)
    folder = write_adapter(tmp_path / "adapter", tensors)
    assert_merged(folder, base, {f"{m}.weight": 8 / 4 * product(tensors, m) for m in (Q0, Q1, DOWN1)})


def test_patterns_of_rank_and_alpha_count_for_the_modules_they_match(base, tmp_path):
    tensors = low_rank(base, Q0, rank=2) | low_rank(base, Q1, rank=2) | low_rank(base, V1) | low_rank(base, DOWN1)
    folder = write_adapter(
        tmp_path / "adapter",
        tensors,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 16, "model.layers.1.self_attn.q_proj": 6},
    )
    scales = {Q0: 8 / 2, Q1: 6 / 2, V1: 16 / 4, DOWN1: 8 / 4}
    assert_merged(folder, base, {f"{m}.weight": scale * product(tensors, m) for m, scale in scales.items()})


def test_a_pattern_matches_whole_names_only(base, tmp_path):
    tensors = low_rank(base, DOWN1)
    folder = write_adapter(tmp_path / "adapter", tensors, alpha_pattern={"proj": 100, "own_proj": 100})
    assert_merged(folder, base, {f"{DOWN1}.weight": 8 / 4 * product(tensors, DOWN1)})


def test_rslora_divides_by_the_root_of_the_rank(base, tmp_path):
    tensors = low_rank(base, Q0) | low_rank(base, V1, rank=9)
    folder = write_adapter(tmp_path / "adapter", tensors, use_rslora=True, rank_pattern={"v_proj": 9})
    scales = {Q0: 8 / 2, V1: 8 / 3}
    assert_merged(folder, base, {f"{m}.weight": scale * product(tensors, m) for m, scale in scales.items()})


def embedding_adapter(base):
    """A and B of the embeddings, which PEFT keeps without `.weight` and the other way round."""
    rng = np.random.default_rng(3)
    entries, features = base[f"{EMBEDDINGS}.weight"].shape
    a = rng.standard_normal((4, entries), dtype=np.float32) * 0.1
    b = rng.standard_normal((features, 4), dtype=np.float32) * 0.1
    tensors = {
        f"base_model.model.{EMBEDDINGS}.lora_embedding_A": a,
        f"base_model.model.{EMBEDDINGS}.lora_embedding_B": b,
    }
    return tensors, {f"{EMBEDDINGS}.weight": 8 / 4 * (b.astype(np.float64) @ a).T}


def test_an_adapter_of_the_embeddings_is_added_transposed(base, tmp_path):
    tensors, update = embedding_adapter(base)
    folder = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens"])
    assert_merged(folder, base, update)


def test_base_layers_that_come_with_an_adapter_take_the_place_of_the_checkpoints(base, tmp_path):
    """With the embeddings or the head among its targets, PEFT writes their own weights too, as `base_layer`."""
    tensors, update = embedding_adapter(base)
    tensors[f"base_model.model.{EMBEDDINGS}.base_layer.weight"] = base[f"{EMBEDDINGS}.weight"] + 0.5
    tensors |= low_rank(base, "lm_head")
    tensors["base_model.model.lm_head.base_layer.weight"] = base["lm_head.weight"]
    folder = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens", "lm_head"])
    update[f"{EMBEDDINGS}.weight"] += 0.5
    assert_merged(folder, base, update | {"lm_head.weight": 8 / 4 * product(tensors, "lm_head")})


def test_modules_to_save_replace_those_of_the_base(base, tmp_path):
    saved = {"lm_head.weight": base["lm_head.weight"] * 2, "model.norm.weight": base["model.norm.weight"] + 1}
    tensors = low_rank(base, Q0) | {f"base_model.model.{name}": tensor for name, tensor in saved.items()}
    folder = write_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head", "norm"])
    merged = merged_tensors(folder)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(merged[name], tensor)
    np.testing.assert_allclose(merged[f"{Q0}.weight"], base[f"{Q0}.weight"] + 2 * product(tensors, Q0), atol=1e-6)


def test_one_row_of_a_head_is_that_of_the_merged_head(base, tmp_path):
    adapted = low_rank(base, "lm_head")
    replaced = {"base_model.model.lm_head.weight": base["lm_head.weight"] * 2}
    for number, tensors in enumerate((adapted, replaced, low_rank(base, Q0))):
        source = merge_adapter(open_torch_files(BASE), write_adapter(tmp_path / f"adapter-{number}", tensors))
        row = source.read("lm_head.weight", (slice(7, 8),))
        np.testing.assert_array_equal(row[0], source.read("lm_head.weight")[7])


def test_a_part_of_a_merged_tensor_is_that_of_the_whole_bit_for_bit(base, tmp_path, monkeypatch):
    monkeypatch.setattr(peft, "ROWS", 16)
    tensors, _ = embedding_adapter(base)
    folder = write_adapter(tmp_path / "adapter", tensors | low_rank(base, Q0) | low_rank(base, DOWN1))
    source = merge_adapter(open_torch_files(BASE), folder)
    for name in (f"{Q0}.weight", f"{DOWN1}.weight", f"{EMBEDDINGS}.weight", f"{V1}.weight"):
        whole = source.read(name)
        for index in ((slice(5, 30), slice(3, 17)), (slice(16, 32), slice(None)), (slice(31, 32), slice(0, 1))):
            assert source.read(name, index).tobytes() == np.ascontiguousarray(whole[index]).tobytes()
        assert (np.abs(whole - base[name]).max() > 1e-3) == (name != f"{V1}.weight")


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_scores_are_those_of_a_checkpoint_with_the_merged_weights(base, tmp_path, reranker):
    tensors, _ = embedding_adapter(base)
    tensors |= low_rank(base, Q0) | low_rank(base, V1) | low_rank(base, DOWN1) | low_rank(base, "lm_head")
    folder = write_adapter(tmp_path / "adapter", tensors, alpha_pattern={"q_proj": 32})
    merged = tmp_path / "merged"
    shutil.copytree(BASE, merged)
    save_file({k: np.ascontiguousarray(v) for k, v in merged_tensors(folder).items()}, merged / "model.safetensors")
    scores = FlaxAutoReranker.from_finetuned(str(BASE), peft_path=str(folder)).compute_score(PAIRS)
    expected = FlaxAutoReranker.from_finetuned(str(merged)).compute_score(PAIRS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert np.abs(np.subtract(scores, reranker("decoder-llama").compute_score(PAIRS))).max() > 0.05


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16' is not supported"),
        ({"layer_replication": [[0, 1], [0, 2]]}, r"layer_replication = \[\[0, 1\], \[0, 2\]\] is not supported"),
        ({"trainable_token_indices": [5]}, r"trainable_token_indices = \[5\] is not supported"),
        ({"use_new_kind": True}, "use_new_kind = True is not supported"),
        ({"lora_alpha": "8"}, r"adapter_config\.json: lora_alpha is '8'; it must be a number from 0 to 1e\+06"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a number"),
        ({"lora_alpha": True}, "lora_alpha is True; it must be a number"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; it must be true or false"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\]; it must be an object of finite numbers"),
        ({"alpha_pattern": {"q_proj": "1"}}, "alpha_pattern is .*; it must be an object of finite numbers"),
        ({"alpha_pattern": {"(": 1}}, r"the name '\(' in alpha_pattern is not supported"),
        ({"alpha_pattern": {"([a-z]+)+!": 1}}, "in alpha_pattern is not supported"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "in alpha_pattern is not supported"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_kind_of_adapter_is_refused_by_name(base, tmp_path, changes, named):
    folder = write_adapter(tmp_path / "adapter", low_rank(base, Q0), **changes)
    with pytest.raises(CheckpointError, match=named):
        merge_adapter(open_torch_files(BASE), folder)


def test_fields_of_later_versions_that_change_nothing_are_accepted(base, tmp_path):
    later = {"corda_config": None, "use_qalora": False, "peft_version": "0.18.0", "arrow_config": None, "new": None}
    tensors = low_rank(base, Q0)
    folder = write_adapter(tmp_path / "adapter", tensors, **later)
    assert_merged(folder, base, {f"{Q0}.weight": 2 * product(tensors, Q0)})


def test_all_that_does_not_fit_is_told_at_once(base, tmp_path):
    tensors = low_rank(base, Q0)
    lonely = [name for name in low_rank(base, Q1) if "lora_A" in name]
    tensors |= {name: low_rank(base, Q1)[name] for name in lonely}  # an A without its B
    orphan = [name for name in low_rank(base, V1) if "lora_B" in name]
    tensors |= {name: low_rank(base, V1)[name] for name in orphan}  # a B without its A
    tensors |= {
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": np.ones((4, 32), np.float32),
        "base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight": np.ones((32, 4), np.float32),
    }
    tensors |= {  # of another width than the base
        f"base_model.model.{DOWN1}.lora_A.weight": np.ones((4, 48), np.float32),
        f"base_model.model.{DOWN1}.lora_B.weight": np.ones((32, 4), np.float32),
    }
    tensors |= {  # A and B of different ranks
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((4, 32), np.float32),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": np.ones((64, 3), np.float32),
    }
    tensors["base_model.model.model.norm.weight"] = np.ones(31, np.float32)
    tensors[f"base_model.model.{Q0}.lora_magnitude_vector"] = np.ones(32, np.float32)
    folder = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(CheckpointError) as error:
        merge_adapter(open_torch_files(BASE), folder)
    named = (
        f"{Q1}.lora_B.weight is missing",
        f"{V1}.lora_A.weight is missing",
        "model.layers.7.self_attn.q_proj.weight is missing",
        f"{DOWN1}.weight is [32, 64]",
        "model.layers.0.mlp.up_proj",
        "model.norm.weight [31] matches no tensor",
        f"{Q0}.lora_magnitude_vector [32] matches no tensor",
    )
    for text in named:
        assert sum(text in fault for fault in error.value.faults) == 1, text
    assert len(error.value.faults) == len(named)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 2, 2)])
def test_an_update_that_is_no_matrix_is_named(base, tmp_path, shape):
    tensors = low_rank(base, Q0)
    down = next(name for name in tensors if "lora_A" in name)
    folder = write_adapter(tmp_path / "adapter", tensors | {down: np.ones(shape, np.float32)})
    with pytest.raises(CheckpointError, match=r"lora_A\.weight \[4.*\] is not a matrix"):
        merge_adapter(open_torch_files(BASE), folder)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(base, tmp_path, missing):
    folder = write_adapter(tmp_path / "adapter", low_rank(base, Q0))
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {missing} in .*adapter: is it the folder of a PEFT adapter"):
        merge_adapter(open_torch_files(BASE), folder)


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_a_peft_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        FlaxAutoReranker.from_finetuned(str(BASE), peft_path=str(tmp_path / "nowhere"))


def test_an_adapter_of_an_unused_head_is_refused(tmp_path):
    """A tied model has no use for a head of its own, even where its files hold one."""
    folder = tmp_path / "tied"
    shutil.copytree(CASES / "decoder-qwen2", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    adapter = write_adapter(
        tmp_path / "adapter", {"base_model.model.lm_head.weight": tensors["lm_head.weight"] * 2}, modules_to_save=["x"]
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        FlaxAutoReranker.from_finetuned(str(folder), peft_path=str(adapter))


def test_an_adapter_makes_a_classifier_of_a_language_model(tmp_path):
    """As RankLLaMA is published: the base has no `score`, the adapter has it."""
    case = load_case("seqcls-llama")
    whole = load_file(case.folder / "model.safetensors")
    module = "model.layers.1.self_attn.v_proj"
    rng = np.random.default_rng(0)
    update = {side: rng.normal(size=shape).astype(np.float32) for side, shape in {"A": (4, 48), "B": (16, 4)}.items()}
    score = whole.pop("score.weight")
    base = shutil.copytree(case.folder, tmp_path / "base")
    whole[f"{module}.weight"] = whole[f"{module}.weight"] - 2 * (update["B"] @ update["A"])
    save_file(whole | {"lm_head.weight": whole["model.embed_tokens.weight"]}, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = {f"base_model.model.{module}.lora_{side}.weight": tensor for side, tensor in update.items()}
    save_file(tensors | {"base_model.model.score.weight": score}, adapter / "adapter_model.safetensors")
    fields = CONFIG | {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    convert(str(base), tmp_path / "flax", peft_path=str(adapter), prompt_format="rankllama", max_length=80)
    assert check_tensors(base, tmp_path / "flax", adapter).faults == ()
    model = FlaxAutoReranker.from_finetuned(tmp_path / "flax", devices="cpu:0")
    assert case.error(1, model.compute_score(case.pairs)) <= 1e-4
