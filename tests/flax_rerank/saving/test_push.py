"""Uploads to a hub, and loading from it by name."""

import importlib.util
import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from reference_cases import load_case

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.cli import main
from flax_rerank.hub import HubError
from flax_rerank.saving.push import push_folder

SPEC = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
hub_server = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hub_server)
PAIRS = load_case("encoder-bert").pairs[:3]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that HF_ENDPOINT names, as it were, with an empty cache."""
    with hub_server.serve() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture
def saved(reranker, tmp_path):
    """A Flax checkpoint with a setting of its own, and its scores."""
    model = reranker("encoder-bert", {"max_length": 48})
    model.save(tmp_path / "saved")
    return tmp_path / "saved", model.compute_score(PAIRS)


def test_both_kinds_of_folder_are_pushed_and_loaded_by_name(hub, saved, reranker, capsys):
    folder, scores = saved
    url = reranker("encoder-bert", {"max_length": 48}).push_to_hub("me/panda", pytorch=True, token="hf_secret")
    assert url == f"{hub.address}/me/panda/commit/{hub.sha('me/panda')}"
    assert set(hub.tokens) == {"Bearer hf_secret"}
    there = hub.repositories["me/panda"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= there.keys()
    loaded = FlaxAutoReranker.from_finetuned("me/panda", devices="cpu:0", max_length=48)
    assert loaded.compute_score(PAIRS) == pytest.approx(scores, abs=1e-6)

    # A Flax checkpoint takes its place.
    assert main(["push", str(folder), "me/panda", "--message", "Now in Flax"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.address}/me/panda/commit/{hub.sha('me/panda')}"
    assert hub.commits == ["Upload a reranker", "Now in Flax"]
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert there.keys() == files | {"README.md"}
    assert all(there[name] == (folder / name).read_bytes() for name in files)
    card = there["README.md"].decode()
    assert 'from_finetuned("me/panda")' in card
    assert "library_name: flax-rerank" in card
    loaded = FlaxAutoReranker.from_finetuned("me/panda", devices="cpu:0")
    assert loaded.settings.max_length == 48
    assert loaded.compute_score(PAIRS) == pytest.approx(scores, abs=1e-6)


def test_the_folders_own_card_names_the_repository(hub, saved):
    (saved[0] / "README.md").write_text('---\nlicense: mit\n---\nFlaxAutoReranker.from_finetuned("PATH")\n')
    push_folder(saved[0], "me/panda")
    card = hub.repositories["me/panda"]["README.md"].decode()
    assert card == '---\nlicense: mit\n---\nFlaxAutoReranker.from_finetuned("me/panda")\n'


def test_nothing_else_is_uploaded(hub, saved, tmp_path):
    folder, _ = saved
    pytorch = tmp_path / "pytorch"
    assert main(["convert", str(folder), str(pytorch), "--to", "pytorch", "--no-progress"]) == 0
    (pytorch / "notes.txt").write_text("private")
    with pytest.raises(ValueError, match=r"it holds notes.txt, which is not part of a checkpoint"):
        push_folder(pytorch, "me/panda")
    (folder / "params" / "token").write_text("private")
    with pytest.raises(CheckpointError, match=r"params/token is not in manifest.json"):
        push_folder(folder, "me/panda")
    (folder / "params" / "token").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json is damaged"):
        push_folder(folder, "me/panda")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        push_folder(tmp_path / "nothing", "me/panda")
    assert hub.repositories == {}


@pytest.mark.parametrize(("name", "reason"), [("you/panda", "403"), ("me/pan/da", "Repo id must be")])
def test_what_the_hub_refuses_is_an_error(hub, saved, name, reason):
    with pytest.raises(HubError, match=f"saved could not be uploaded to {name}: .*{reason}"):
        push_folder(saved[0], name)
    assert hub.commits == []
