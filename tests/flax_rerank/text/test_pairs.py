"""Texts to token ids: what is taken as a pair, what is put around and cut off, and what cannot be encoded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from reference_cases import CASES
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from flax_rerank import FlaxReranker
from flax_rerank.text.pairs import as_pairs, tokenize
from flax_rerank.text.prompts import Instruction
from flax_rerank.text.tokenizer import Tokenizer

PLAIN = Instruction(None, "{}{}")
CLS, SEP = 2, 3
# One token each in the BERT case: a text of n words has n tokens.
WORDS = ["panda", "tutor", "urine", "justice", "physical", "passage", "liver", "compass", "color", "buyer", "victim"]


def words(count, start=0):
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(count))


@pytest.fixture(scope="module")
def bert(reranker):
    return reranker("encoder-bert")


@pytest.fixture
def tokenized(bert):
    """`tokenized(pairs, query_max_length=12, max_length=16, ...)`, as the BERT case has it."""

    def call(pairs, query_max_length=12, max_length=16, tokenizer=bert.spec.tokenizer, query=PLAIN, passage=PLAIN):
        template = bert.spec.prompt_format.template(tokenizer, max_length, query_max_length)
        return tokenize(pairs, tokenizer, template, query_instruction=query, passage_instruction=passage)

    return call


@pytest.fixture
def encoded_texts(monkeypatch):
    """The texts given to the tokenizer from now on, one list a call."""
    calls = []
    encode_many = Tokenizer.encode_many

    def record(self, texts, **options):
        calls.append(list(texts))
        return encode_many(self, texts, **options)

    monkeypatch.setattr(Tokenizer, "encode_many", record)
    return calls


# What is a pair


@pytest.mark.parametrize("pair", [("a", "b"), ["a", "b"], np.asarray(["a", "b"])], ids=["tuple", "list", "array"])
def test_one_pair_is_a_list_of_one(pair):
    assert as_pairs(pair) == [("a", "b")]
    assert as_pairs([pair]) == [("a", "b")]


def test_many_pairs_keep_their_order():
    many = [("a", "b"), ["c", "d"], ("a", "b")]
    assert as_pairs(many) == as_pairs(tuple(many)) == as_pairs(iter(many)) == [("a", "b"), ("c", "d"), ("a", "b")]


def test_two_pairs_are_not_taken_for_one():
    assert as_pairs([["a", "b"], ["c", "d"]]) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("none", [[], (), iter([])])
def test_no_pairs_are_no_pairs(none):
    assert as_pairs(none) == []


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 7, 1.5, "ab", b"ab", {"query": "a", "passage": "b"}),
        *(("a", "b", "c"), ("a",), (), ("a", None), (None, "b"), ("a", 1), ("a", b"b"), ("a", ["b"])),
    ],
    ids=repr,
)
@pytest.mark.parametrize("index", [0, 1, 3])
def test_what_is_no_pair_is_named_by_its_index(wrong, index):
    pairs = [("a", "b")] * 4
    pairs[index] = wrong
    with pytest.raises(TypeError, match=rf"^pair {index} is not two strings"):
        as_pairs(pairs)


def test_the_first_wrong_pair_is_the_one_named():
    with pytest.raises(TypeError, match=r"^pair 1 .*None"):
        as_pairs([("a", "b"), None, 7])


@pytest.mark.parametrize("wrong", ["a single text", "ab", b"ab"])
def test_a_single_string_is_no_pair(wrong):
    with pytest.raises(TypeError, match="single string"):
        as_pairs(wrong)


@pytest.mark.parametrize("wrong", [["a"], ["a", "b", "c"], ["a", None], ["a", ("b", "c")]], ids=repr)
def test_strings_in_place_of_pairs_are_refused(wrong):
    with pytest.raises(TypeError, match=r"^pair 0 is not two strings"):
        as_pairs(wrong)


@pytest.mark.parametrize("wrong", [None, 7, np.array("a")])
def test_what_holds_no_pairs_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=r"^pairs are a list of \(query, passage\)"):
        as_pairs(wrong)


def test_a_long_wrong_pair_does_not_flood_the_message():
    with pytest.raises(TypeError, match="pair 0") as caught:
        as_pairs([("a", "b" * 100_000, "c")])
    assert len(str(caught.value)) < 200


# Instructions


def test_without_instruction_the_format_is_not_applied():
    assert Instruction(None, "<{}|{}>").apply("text") == "text"


@pytest.mark.parametrize(
    ("text", "format_", "expected"),
    [
        ("Query", "{}{}", "Querytext"),
        ("Query", "{}: {}", "Query: text"),
        ("Query", "{1} ({0})", "text (Query)"),
        ("", "[{}]{}", "[]text"),
        ("Query", r"{}\n{}", "Query\ntext"),
        ("Query", "{}\n{}", "Query\ntext"),
        (r"a\nb", "{} {}", r"a\nb text"),
    ],
)
def test_the_format_puts_instruction_and_text_together(text, format_, expected):
    assert Instruction(text, format_).apply("text") == expected


def test_a_backslash_n_or_a_brace_in_the_text_stays():
    assert Instruction("Q", r"{}\n{}").apply(r"a\nb {} {0}") == "Q\na\\nb {} {0}"


def test_instructions_stand_before_query_and_passage(tokenized, bert):
    pairs = tokenized(
        [("panda", "tutor")], query=Instruction("justice", "{} {}"), passage=Instruction("physical", r"{}:\n{}")
    )
    query = bert.spec.tokenizer.encode("justice panda").tolist()
    passage = bert.spec.tokenizer.encode("physical: tutor").tolist()
    assert pairs.ids(0).tolist() == [CLS, *query, SEP, *passage, SEP]
    assert pairs.passage_starts.tolist() == [len(query) + 2]


def test_a_tokenizer_that_puts_nothing_between_two_texts_is_refused(bert):
    backend = Backend.from_str(bert.spec.tokenizer.backend.to_str())
    backend.post_processor = TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
    tokenizer = replace(bert.spec.tokenizer, backend=backend)
    with pytest.raises(ValueError, match="puts no separator between two texts"):
        bert.spec.prompt_format.template(tokenizer, 16, 12)


# Cutting


@pytest.mark.parametrize(
    ("query", "passage", "query_kept", "passage_kept"),
    [
        (5, 5, 5, 5),
        (5, 8, 5, 8),
        (5, 9, 5, 8),
        (5, 300, 5, 8),
        (12, 1, 12, 1),
        (13, 1, 12, 1),
        (300, 300, 12, 1),
        (5, 0, 5, 0),
        (0, 13, 0, 13),
        (0, 14, 0, 13),
        (0, 0, 0, 0),
        (13, 0, 12, 0),
    ],
)
def test_query_and_passage_are_cut_on_the_right_and_it_is_told(
    tokenized, bert, query, passage, query_kept, passage_kept
):
    # 16 tokens, 3 of them special: 13 for both, at most 12 for the query.
    pairs = tokenized([(words(query), words(passage, 5))])
    encode = bert.spec.tokenizer.encode
    expected = [CLS, *encode(words(query_kept)), SEP, *encode(words(passage_kept, 5)), SEP]
    assert pairs.ids(0).tolist() == expected
    assert pairs.lengths.tolist() == [len(expected)]
    assert pairs.passage_starts.tolist() == [query_kept + 2]
    assert pairs.truncated.tolist() == [query_kept < query or passage_kept < passage]


def test_the_truncation_of_every_pair_is_known(tokenized):
    pairs = tokenized([(words(q), words(p)) for q, p in [(1, 1), (1, 50), (50, 1), (12, 1), (50, 50), (6, 7), (6, 8)]])
    assert pairs.truncated.tolist() == [False, True, True, False, True, False, True]


@pytest.mark.parametrize("room", range(2, 12))
def test_longest_first_cuts_as_the_tokenizers_library_does(bert, room):
    lengths = range(15)
    pairs = [(words(q), words(p, 5)) for q in lengths for p in lengths]
    backend = Backend.from_str(bert.spec.tokenizer.backend.to_str())
    backend.enable_truncation(room + 3, strategy="longest_first")
    template = bert.spec.template(replace(bert.settings, max_length=room + 3, truncation="longest_first"))
    found = tokenize(pairs, bert.spec.tokenizer, template, query_instruction=PLAIN, passage_instruction=PLAIN)
    assert [found.ids(i).tolist() for i in range(len(pairs))] == [backend.encode(*pair).ids for pair in pairs]
    assert found.truncated.tolist() == [q + p > room for q in lengths for p in lengths]


def test_longest_first_cuts_the_query_first_where_its_length_is_given(bert):
    settings = replace(bert.settings, max_length=16, truncation="longest_first", query_max_length=4)
    template = bert.spec.template(settings)
    pairs = [(words(9), words(5)), (words(9), words(20))]
    found = tokenize(pairs, bert.spec.tokenizer, template, query_instruction=PLAIN, passage_instruction=PLAIN)
    assert found.query_lengths.tolist() == [4, 4]
    assert found.passage_lengths.tolist() == [5, 9]
    assert found.truncated.tolist() == [True, True]


def test_longest_first_without_room_for_both_texts_is_refused(bert):
    with pytest.raises(ValueError, match=r"pair 0: no token of the passage is left.* may have 0"):
        bert.compute_score([("panda", "tutor")], max_length=3, truncation="longest_first")


def test_a_checkpoint_that_cuts_on_the_left_keeps_the_ends(tokenized, tmp_path):
    folder = shutil.copytree(CASES / "encoder-bert", tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left"}))
    tokenizer = Tokenizer.from_folder(folder)
    query, passage = words(20), words(30, 3)
    pairs = tokenized([(query, passage)], query_max_length=6, tokenizer=tokenizer)
    expected = [CLS, *tokenizer.encode(query)[-6:], SEP, *tokenizer.encode(passage)[-7:], SEP]
    assert pairs.ids(0).tolist() == expected


def test_a_query_that_leaves_no_room_for_its_passage_is_named_with_the_numbers(tokenized):
    pairs = [(words(4), words(4)), (words(14), ""), (words(14), words(2)), (words(14), words(2))]
    with pytest.raises(ValueError, match=r"^pair 2: no token of the passage is left") as caught:
        tokenized(pairs, query_max_length=13)
    for part in ("13 tokens (of 14)", "may have 13"):
        assert part in str(caught.value)


def test_a_max_length_below_the_special_tokens_is_refused(tokenized):
    with pytest.raises(ValueError, match="pair 0: no token of the passage is left"):
        tokenized([("panda", "tutor")], query_max_length=1, max_length=2)


def test_an_instruction_that_leaves_no_room_for_the_passage_is_refused(tokenized):
    with pytest.raises(ValueError, match="pair 1: no token of the passage is left"):
        tokenized([("panda", ""), ("panda", "tutor")], passage=Instruction(words(12), "{} {}"))


def test_an_instruction_that_leaves_no_room_for_the_query_is_refused(tokenized):
    with pytest.raises(ValueError, match=r"pair 0: no token of the query is left\. Its instruction has 12 tokens"):
        tokenized([("panda", "tutor")], query=Instruction(words(12), "{} {}"))


# Distinct texts


def test_every_distinct_text_is_tokenised_once(tokenized, encoded_texts):
    pairs = tokenized([(f"panda {i % 3}", f"passage {i % 7}") for i in range(100)])
    assert len(pairs) == 100
    (texts,) = encoded_texts
    assert len(texts) == len(set(texts)) == 10


def test_a_text_that_is_query_and_passage_is_tokenised_once(tokenized, encoded_texts):
    tokenized([("panda", "panda"), ("tutor", "panda")])
    assert [sorted(texts) for texts in encoded_texts] == [["panda", "tutor"]]


def test_with_an_instruction_the_same_text_differs_as_query_and_as_passage(tokenized, encoded_texts, bert):
    pairs = tokenized([("panda", "panda")], query=Instruction("justice", "{} {}"))
    assert [sorted(texts) for texts in encoded_texts] == [["justice panda", "panda"]]
    panda, justice = (int(bert.spec.tokenizer.encode(text)[0]) for text in ("panda", "justice"))
    assert pairs.ids(0).tolist() == [CLS, justice, panda, SEP, panda, SEP]


def test_repeated_texts_have_the_ids_of_texts_alone(tokenized):
    pairs = [(words(i % 3 + 1), words(i % 5 + 1, i % 5)) for i in range(15)]
    together = tokenized(pairs)
    assert [together.ids(i).tolist() for i in range(15)] == [tokenized([pair]).ids(0).tolist() for pair in pairs]


# Odd texts


@pytest.mark.parametrize(
    ("pair", "role", "code", "position"),
    [
        (("x\ud800y", "b"), "query", "D800", 1),
        (("a", "\udfff"), "passage", "DFFF", 0),
        (("é", "中文 \udc80"), "passage", "DC80", 3),
    ],
)
def test_a_lone_surrogate_is_named_by_the_index_of_its_pair(tokenized, pair, role, code, position):
    with pytest.raises(ValueError, match=rf"^pair 2: its {role} cannot be encoded: .*U\+{code}.* {position}$"):
        tokenized([("a", "b"), ("é", "🐼"), pair, ("\ud800", "b")])


def test_a_lone_surrogate_is_named_when_scoring_too(bert):
    with pytest.raises(ValueError, match=r"pair 1: its .* cannot be encoded"):
        bert.compute_score([("a", "b"), ("a", "\ud800")])


ODD = {
    "nul": "\x00",
    "nul-inside": "panda\x00bear",
    "control": "\x01\x02\x1b[0m\x7f",
    "right-to-left": "שלום עולם، مرحبا بالعالم \u202e\u200f",
    "emoji": "🐼👩‍👩‍👧‍👦🏳️‍🌈 panda 🐼",
    "combining": "e\u0301" * 50 + "\u0300",
    "byte-order-mark": "\ufeffpanda",
    "beyond-the-plane": "\U0010ffff𝔘𐍈",
    "white-space": " \t\n\r\u00a0\u3000 ",
    "special-tokens": "[SEP] [CLS] </s> <s> [PAD] <pad>",
    "empty": "",
}


@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr"])
def test_odd_texts_have_finite_scores_as_query_and_as_passage(reranker, name):
    pairs = [("what is panda?", text) for text in ODD.values()] + [(text, "a bear") for text in ODD.values()]
    scores = reranker(name).compute_score(pairs)
    assert len(scores) == len(pairs)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("text", ["a" * 1_000_000, "panda " * 170_000], ids=["one-word", "words"])
@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr"])
def test_a_passage_of_a_megabyte_has_a_finite_score(reranker, name, text):
    output = reranker(name).score(("what is panda?", text), max_length=64)
    assert np.isfinite(output.scores).all()
    assert output.tokens[0] <= 64


def test_a_reranker_scores_as_if_its_instructions_stood_in_the_texts(bert):
    instructed = FlaxReranker(
        str(CASES / "encoder-bert"),
        query_instruction_for_rerank="justice",
        query_instruction_format=r"{}:\n{}",
        passage_instruction_for_rerank="physical",
        passage_instruction_format="{} {}",
        devices="cpu:0",
    )
    scores = instructed.compute_score([("panda", "tutor"), ("buyer", "")])
    assert scores == bert.compute_score([("justice:\npanda", "physical tutor"), ("justice:\nbuyer", "physical ")])


def test_an_array_without_axes_is_no_pair():
    with pytest.raises(TypeError, match=r"^pair 0 is not two strings"):
        as_pairs([np.array("a")])
