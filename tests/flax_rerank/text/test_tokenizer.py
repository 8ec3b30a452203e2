"""The tokenizer of a folder: ids of the text alone, in order, from tokenizer.json."""

import json
import re
import shutil

import numpy as np
import pytest
from reference_cases import CASES

from flax_rerank import FlaxAutoReranker
from flax_rerank.spec import open_spec
from flax_rerank.text.tokenizer import CHUNK, Tokenizer


@pytest.fixture
def folder(tmp_path):
    """A copy of the BERT checkpoint, to be changed."""
    return shutil.copytree(CASES / "encoder-bert", tmp_path / "model")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_ids_are_those_of_the_text_without_special_tokens(folder):
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ids = Tokenizer.from_folder(folder).encode("Panda tutor justice")
    assert ids.dtype == np.int32
    assert ids.tolist() == [vocabulary[word] for word in ("panda", "tutor", "justice")]


def test_truncation_and_padding_of_the_file_have_no_effect(folder):
    plain = Tokenizer.from_folder(folder)
    texts = ["panda", "panda tutor justice urine"]
    expected = [ids.tolist() for ids in plain.encode_many(texts)]
    change(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == expected
    assert tokenizer.encode(texts[1]).tolist() == expected[1]


def test_many_texts_come_back_in_order_over_all_chunks(folder):
    tokenizer = Tokenizer.from_folder(folder)
    texts = [" ".join(["panda"] * (i % 9) + ["tutor"] * (i % 4)) for i in range(2 * CHUNK + 17)]
    many = tokenizer.encode_many(texts)
    assert len(many) == len(texts)
    alone = {text: tokenizer.encode(text).tolist() for text in set(texts)}
    assert all(ids.tolist() == alone[text] for text, ids in zip(texts, many, strict=True))
    assert all(ids.dtype == np.int32 for ids in many)


def test_no_texts_have_no_ids(folder):
    assert Tokenizer.from_folder(folder).encode_many([]) == []


@pytest.mark.parametrize(
    ("name", "bos", "pad"), [("encoder-bert", None, 0), ("encoder-xlmr", 0, 1)], ids=["bert", "xlmr"]
)
def test_special_tokens_are_known_where_the_checkpoint_has_them(name, bos, pad):
    tokenizer = Tokenizer.from_folder(CASES / name)
    assert tokenizer.bos_token_id == bos
    assert tokenizer.pad_token_id == pad


def test_a_special_token_may_be_written_as_an_object(folder):
    change(folder / "tokenizer_config.json", pad_token={"content": "[MASK]", "lstrip": False})
    assert Tokenizer.from_folder(folder).pad_token_id == 4


def test_the_settings_may_be_missing(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.pad_token_id is None
    assert tokenizer.truncation_side == "right"


@pytest.mark.parametrize(
    ("side", "length", "expected"),
    [
        ("right", 2, [5, 6]),
        ("left", 2, [7, 8]),
        ("right", 0, []),
        ("left", 0, []),
        ("right", 9, [5, 6, 7, 8]),
        ("left", 9, [5, 6, 7, 8]),
        ("left", 4, [5, 6, 7, 8]),
    ],
)
def test_texts_are_cut_on_the_side_that_the_checkpoint_names(folder, side, length, expected):
    change(folder / "tokenizer_config.json", truncation_side=side)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.cut(np.asarray([5, 6, 7, 8], np.int32), length).tolist() == expected


def test_its_files_are_all_that_another_folder_needs(folder, tmp_path):
    tokenizer = Tokenizer.from_folder(folder)
    assert {file.name for file in tokenizer.files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    other = tmp_path / "other"
    other.mkdir()
    for file in tokenizer.files:
        shutil.copy(file, other)
    assert (
        Tokenizer.from_folder(other).encode("what is panda?").tolist() == tokenizer.encode("what is panda?").tolist()
    )


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe"])
def test_a_corrupt_tokenizer_is_refused_by_path(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Tokenizer.from_folder(folder)
    assert str(folder / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_corrupt_settings_are_refused_by_path(folder, file):
    (folder / file).write_text("{")
    with pytest.raises(ValueError, match=file) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_without_tokenizer_says_where_it_looked_and_for_what(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.from_folder(folder)
    for part in (str(folder), "tokenizer.json", "vocab.txt", "sentencepiece.bpe.model"):
        assert part in str(caught.value)


def test_without_tokenizer_json_transformers_makes_one_from_the_other_files(folder, caplog):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\npanda\n")
    assert Tokenizer.from_folder(folder).encode("panda bear Panda").tolist() == [5, 1, 5]
    assert f"{folder} has no tokenizer.json" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("tokenizer_config.json", "[]", "holds a list, not a JSON object"),
        ("special_tokens_map.json", "{", "is not JSON"),
        ("special_tokens_map.json", '{"bos_token": 7}', "bos_token is 7; it must be a string"),
        ("tokenizer_config.json", '{"pad_token": {"text": "x"}}', "pad_token is {'text': 'x'}"),
        ("tokenizer_config.json", '{"truncation_side": "middle"}', "truncation_side is 'middle'"),
    ],
)
def test_files_of_another_shape_are_named_with_the_field(folder, file, content, named):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)


def test_token_ids_that_the_model_does_not_have_are_refused_with_both_numbers(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["beyond"] = 705
    change(folder / "tokenizer.json", model=tokenizer["model"])
    with pytest.raises(ValueError, match="token ids up to 705, the model has 700 embeddings"):
        open_spec(str(folder))


def test_special_tokens_that_the_model_does_not_have_are_refused_with_both_numbers(folder):
    processor = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["post_processor"]
    processor["special_tokens"]["[SEP]"]["ids"] = [700]
    change(folder / "tokenizer.json", post_processor=processor)
    with pytest.raises(ValueError, match="puts the token 700 around texts; the model has 700 embeddings"):
        FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0")


def test_a_panic_of_the_library_is_an_error_with_the_path(tmp_path):
    folder = shutil.copytree(CASES / "encoder-xlmr", tmp_path / "model")
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "="}
    change(folder / "tokenizer.json", normalizer=normalizer)
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read: Precompiled"):
        Tokenizer.from_folder(folder)


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
def test_a_bos_token_that_the_vocabulary_does_not_have_is_refused_where_it_is_put_first(tmp_path):
    folder = shutil.copytree(CASES / "decoder-gemma", tmp_path / "model")
    change(folder / "tokenizer_config.json", bos_token="<nope>")
    with pytest.raises(ValueError, match="bos_token is '<nope>', which its vocabulary does not have"):
        FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0")
