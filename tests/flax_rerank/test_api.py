"""What a user of FlaxReranker meets: arguments, outputs, ranking, devices, dtypes, threads."""

import inspect
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import nnx
from reference_cases import CASES, largest_difference, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker, FlaxReranker
from flax_rerank.calibration.curve import sigmoid
from flax_rerank.sharding import find_devices

BERT = str(CASES / "encoder-bert")
CASE = load_case("encoder-bert")
# Short pairs only: few shapes are compiled.
SHORT = [tuple(CASE.pairs[i]) for i in (0, 1, 2, 5, 10, 11)]
QUERY = "what is panda?"


@pytest.fixture(scope="module")
def bert(reranker):
    return reranker("encoder-bert")


def make(**arguments):
    return FlaxReranker(BERT, **{"devices": "cpu:0", "show_progress_bar": False} | arguments)


# Arguments


def test_the_arguments_of_flagreranker_keep_order_names_and_defaults():
    arguments = list(inspect.signature(FlaxReranker).parameters.values())
    expected = {
        "model_name_or_path": inspect.Parameter.empty,
        "use_fp16": False,
        "query_instruction_for_rerank": None,
        "query_instruction_format": "{}{}",
        "passage_instruction_for_rerank": None,
        "passage_instruction_format": "{}{}",
        "trust_remote_code": False,
        "cache_dir": None,
        "devices": None,
        "batch_size": 128,
        "query_max_length": None,
        "max_length": 512,
        "normalize": False,
    }
    assert {argument.name: argument.default for argument in arguments[: len(expected)]} == expected
    assert [argument.name for argument in arguments[: len(expected)]] == list(expected)
    ours = arguments[len(expected) :]
    assert {argument.name for argument in ours} == {
        *("use_bf16", "dtype", "mesh", "sharding_rules", "show_progress_bar", "passage_max_length", "truncation"),
        "calibration",
        "compile_cache",
    }
    assert all(argument.kind is argument.KEYWORD_ONLY for argument in ours)


@pytest.mark.parametrize("argument", ["use_fp8", "peft_path", "prompt", "batchsize"])
def test_an_unknown_argument_is_a_type_error(bert, argument):
    with pytest.raises(TypeError, match=argument):
        make(**{argument: 1})
    with pytest.raises(TypeError, match=argument):
        bert.compute_score(SHORT[0], **{argument: 1})
    with pytest.raises(TypeError, match=argument):
        bert.score(SHORT[0], **{argument: 1})
    with pytest.raises(TypeError, match=argument):
        bert.rank(QUERY, ["a"], **{argument: 1})


def test_passage_max_length_warns_and_changes_nothing(bert):
    with pytest.warns(UserWarning, match="passage_max_length has no effect") as caught:
        model = make(passage_max_length=4)
    assert [warning.filename for warning in caught] == [__file__]
    assert model.compute_score(SHORT) == bert.compute_score(SHORT)


def test_passage_max_length_warns_through_the_auto_class_too():
    with pytest.warns(UserWarning, match="passage_max_length has no effect"):
        FlaxAutoReranker.from_finetuned(BERT, devices="cpu:0", passage_max_length=4)


@pytest.mark.parametrize(("name", "positions"), [("encoder-bert", 512), ("encoder-xlmr", 512)])
def test_a_max_length_above_the_positions_is_refused_with_both_numbers(reranker, name, positions):
    with pytest.raises(ValueError, match=rf"513.*\b{positions}\b"):
        FlaxReranker(str(CASES / name), max_length=513, devices="cpu:0")
    with pytest.raises(ValueError, match=rf"600.*\b{positions}\b"):
        reranker(name).compute_score(SHORT[0], max_length=600)


@pytest.mark.parametrize("wrong", [{"max_length": 0}, {"max_length": -1}, {"query_max_length": 0}, {"max_length": 1}])
def test_a_length_below_one_is_refused(bert, wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        bert.compute_score(SHORT[0], **wrong)
    with pytest.raises(ValueError, match="must be at least 1"):
        make(**wrong)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(bert, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        bert.compute_score(SHORT, batch_size=batch_size)


def test_the_arguments_of_a_call_win_over_those_of_the_constructor(bert):
    model = make(max_length=32, normalize=True, batch_size=2, query_max_length=3)
    plain = model.score(SHORT, max_length=512, normalize=False, batch_size=128, query_max_length=384)
    np.testing.assert_array_equal(plain.scores, bert.score(SHORT).scores)
    assert model.score(SHORT).tokens.max() == 32
    assert model.score(SHORT, normalize=False).scores.tolist() != model.score(SHORT).scores.tolist()


# compute_score and score


@pytest.mark.parametrize(
    "one", [SHORT[0], list(SHORT[0]), [SHORT[0]], [list(SHORT[0])], (SHORT[0],)], ids=["tuple", "list", "1", "2", "3"]
)
def test_one_pair_gives_a_list_of_one_float(bert, one):
    scores = bert.compute_score(one)
    assert isinstance(scores, list)
    assert [type(score) for score in scores] == [float]
    assert CASE.error(0, scores, slice(1)) <= CASE.allowed_error(0)


def test_many_pairs_give_a_list_of_floats(bert):
    scores = bert.compute_score(SHORT)
    assert isinstance(scores, list)
    assert [type(score) for score in scores] == [float] * len(SHORT)


def test_no_pairs_give_an_empty_list(bert):
    assert bert.compute_score([]) == []
    output = bert.score([])
    assert output.scores.shape == output.tokens.shape == output.truncated.shape == (0,)
    assert output.scores.dtype == np.float64
    assert (output.steps, output.computed_tokens, output.padding_tokens) == (0, 0, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_come_in_the_order_of_the_pairs(bert, seed):
    order = np.random.default_rng(seed).permutation(len(CASE.pairs))
    scores = bert.compute_score([CASE.pairs[i] for i in order])
    assert CASE.error(0, scores, order) <= CASE.allowed_error(0)
    assert len(np.unique(np.round(CASE.runs[0]["scores"], 2))) == len(order)


@pytest.mark.parametrize("call", [{}, {"max_length": 64}], ids=str)
def test_score_tells_tokens_and_truncation_of_each_pair(bert, call):
    output = bert.score(CASE.pairs, **call)
    (run,) = (run for run in CASE.runs if run["call"].get("max_length") == call.get("max_length"))
    lengths = [len(ids) for ids in run["input_ids"]]
    whole = [len(ids) for ids in CASE.runs[0]["input_ids"]]
    assert output.scores.dtype == np.float64
    assert output.scores.tolist() == bert.compute_score(CASE.pairs, **call)
    assert output.tokens.dtype == np.int32
    assert output.tokens.tolist() == lengths
    assert output.truncated.dtype == bool
    assert output.truncated.tolist() == [length < full for length, full in zip(lengths, whole, strict=True)]


@pytest.mark.parametrize("batch_size", [128, 3, 1])
def test_score_counts_what_was_computed(bert, batch_size):
    output = bert.score(SHORT, batch_size=batch_size)
    assert output.computed_tokens - output.padding_tokens == output.tokens.sum()
    assert output.padding_tokens >= 0
    assert output.steps >= len(output.shapes) >= 1
    rows = sum(shape.rows for shape in output.shapes)
    assert output.computed_tokens >= sum(shape.tokens for shape in output.shapes)
    assert rows >= 1
    assert max(shape.tokens for shape in output.shapes) <= batch_size * bert.settings.max_length


def test_a_smaller_batch_takes_more_steps(bert):
    counts = [bert.score(CASE.pairs[:8], batch_size=size, max_length=64).steps for size in (128, 2, 1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


# normalize


def test_normalized_scores_are_sigmoids_of_the_logits(bert):
    logits = np.asarray(bert.compute_score(SHORT))
    normalized = bert.compute_score(SHORT, normalize=True)
    np.testing.assert_allclose(normalized, 1 / (1 + np.exp(-logits)), rtol=1e-12)


def test_sigmoids_of_large_logits_stay_apart_in_score_too(bert):
    params = bert.params["head.out_proj.bias"]
    model = FlaxReranker.from_spec(bert.spec, {**bert.params, "head.out_proj.bias": params + 20}, bert.mesh)
    scores = model.score(SHORT, normalize=True).scores
    assert scores.tolist() == model.compute_score(SHORT, normalize=True)
    assert len(set(scores.tolist())) == len(set(model.compute_score(SHORT))) == len(SHORT)


@pytest.mark.parametrize(
    ("logit", "expected"), [(0.0, 0.5), (1000.0, 1.0), (-1000.0, 0.0), (1e308, 1.0), (-1e308, 0.0)]
)
def test_the_sigmoid_of_any_logit_is_exact_at_the_ends_and_never_overflows(logit, expected):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert sigmoid(np.asarray([logit])).tolist() == [expected]


def test_large_scores_keep_their_order_through_the_sigmoid():
    logits = np.asarray([-700.0, -40.0, -20.0, 0.0, 20.0, 25.0, 30.0])
    assert (np.diff(sigmoid(logits)) > 0).all()


# rank


def test_rank_gives_passages_best_first_with_their_place_and_text(bert):
    passages = [passage for query, passage in CASE.pairs if query == QUERY]
    scores = bert.compute_score([(QUERY, passage) for passage in passages])
    ranked = bert.rank(QUERY, passages)
    assert [list(result) for result in ranked] == [["corpus_id", "score", "text"]] * len(passages)
    assert [result["corpus_id"] for result in ranked] == np.argsort(-np.asarray(scores)).tolist()
    assert [result["score"] for result in ranked] == sorted(scores, reverse=True)
    assert all(result["text"] == passages[result["corpus_id"]] for result in ranked)
    assert {type(result["corpus_id"]) for result in ranked} == {int}
    assert {type(result["score"]) for result in ranked} == {float}


def test_rank_without_documents_gives_no_text(bert):
    (first, second) = bert.rank(QUERY, ["hi", "a bear"], return_documents=False)
    assert set(first) == set(second) == {"corpus_id", "score"}


@pytest.mark.parametrize(("top_k", "count"), [(None, 4), (1, 1), (3, 3), (4, 4), (99, 4)])
def test_rank_gives_the_best_top_k(bert, top_k, count):
    passages = ["hi", "a bear", "the panda", "justice"]
    assert bert.rank(QUERY, passages, top_k=top_k) == bert.rank(QUERY, passages)[:count]


@pytest.mark.parametrize("top_k", [0, -1])
def test_rank_refuses_a_top_k_below_one(bert, top_k):
    with pytest.raises(TypeError, match=r"top_k is 1\.0; it must be int or None"):
        bert.rank(QUERY, ["hi"], top_k=1.0)
    for passages in (7, np.array("hi")):
        with pytest.raises(TypeError, match=r"passages is a (int|ndarray); it must be a sequence of strings"):
            bert.rank(QUERY, passages)
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        bert.rank(QUERY, ["hi"], top_k=top_k)


def test_rank_makes_a_list_of_passages_first(bert):
    passages = ["hi", "a bear", "the panda"]

    class Labelled:
        """As a pandas Series: texts by label, in the order of the values."""

        def __iter__(self):
            return iter(passages)

        def __getitem__(self, label):
            return dict(zip((2, 0, 1), passages, strict=True))[label]

    for each in (Labelled(), iter(passages)):
        assert bert.rank(QUERY, each) == bert.rank(QUERY, passages)
    for wrong in (set(passages), {"hi": 1}):
        with pytest.raises(TypeError, match=f"passages is a {type(wrong).__name__}; it must be a sequence"):
            bert.rank(QUERY, wrong)


@pytest.mark.parametrize("wrong", [{"query": "a", "passage": "b"}, {"a", "b"}], ids=["dict", "set"])
def test_pairs_without_an_order_are_refused(bert, wrong):
    with pytest.raises(TypeError, match=rf"pairs are a list of \(query, passage\), got a {type(wrong).__name__}"):
        bert.compute_score(wrong)


class Frame:
    """As a pandas DataFrame: to go over it gives the names of its columns."""

    def __iter__(self):
        return iter(["query", "passage"])


def test_a_table_is_not_taken_for_a_pair(bert):
    with pytest.raises(TypeError, match="got a Frame: make a list of two strings for each pair"):
        bert.compute_score(Frame())


def test_a_forked_process_is_told_to_spawn(bert, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="load it after the fork, or start processes by multiprocessing's spawn"):
        bert.compute_score(SHORT)


def test_rank_takes_the_arguments_of_compute_score(bert):
    (result,) = bert.rank(QUERY, ["hi"], normalize=True)
    assert [result["score"]] == bert.compute_score((QUERY, "hi"), normalize=True)


def test_rank_of_two_passages_is_not_taken_for_one_pair(bert):
    assert len(bert.rank(QUERY, ["hi", "a bear"])) == 2


def test_rank_of_no_passages_is_empty(bert):
    assert bert.rank(QUERY, []) == []


def test_rank_refuses_a_string_in_place_of_passages(bert):
    with pytest.raises(TypeError, match="passages is a str; it must be a sequence of strings"):
        bert.rank(QUERY, "hi")


def test_rank_names_a_passage_that_is_no_string(bert):
    with pytest.raises(TypeError, match="pair 1 is not two strings"):
        bert.rank(QUERY, ["hi", None])


@pytest.mark.parametrize("devices", [1, None], ids=["one-device", "eight-devices"])
@pytest.mark.parametrize("count", [10, 301])
def test_ties_stay_in_the_order_of_the_passages(reranker, devices, count):
    texts = [CASE.pairs[i][1] for i in (0, 1, 10, 11)]
    passages = [texts[i % len(texts)] for i in range(count)]
    ranked = reranker("encoder-bert", devices=devices).rank(QUERY, passages)
    places = [result["corpus_id"] for result in ranked]
    assert sorted(places) == list(range(count))
    for kind in range(len(texts)):
        same = [place for place in places if place % len(texts) == kind]
        assert same == sorted(same)


def test_equal_pairs_have_equal_scores_wherever_they_stand(bert):
    pairs = [SHORT[i % len(SHORT)] for i in range(301)]
    scores = bert.compute_score(pairs, batch_size=4, show_progress_bar=False)
    for kind in range(len(SHORT)):
        assert len(set(scores[kind :: len(SHORT)])) == 1


# Scores that are none


def test_a_score_that_is_not_finite_is_an_error_that_names_the_first_pair(tmp_path):
    folder = shutil.copytree(BERT, tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.weight"][vocabulary["manhattan"]] = np.nan
    save_file(tensors, folder / "model.safetensors")
    model = FlaxReranker(str(folder), devices="cpu:0", show_progress_bar=False)
    # The longer pair is computed first; the first one in the order of the pairs is to be named.
    pairs = [("panda", "bear"), ("panda", "a bear"), ("panda", "manhattan"), ("panda", "manhattan " + "bear " * 90)]
    for call in (model.compute_score, model.score):
        with pytest.raises(FloatingPointError, match=r"pair 2 is \[nan\], and 2 of 4 "):
            call(pairs)
    with pytest.raises(FloatingPointError, match="pair 1"):
        model.rank("panda", ["bear", "manhattan"])
    with pytest.raises(FloatingPointError, match="pair 0"):
        model.compute_score(pairs[2], normalize=True)
    assert np.isfinite(model.compute_score(pairs[:2])).all()


# dtype


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "float32"),
        ({"use_fp16": True}, "float32"),
        ({"use_bf16": True}, "bfloat16"),
        ({"use_fp16": True, "use_bf16": True}, "bfloat16"),
        ({"dtype": "float32"}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16", "use_fp16": True}, "bfloat16"),
        ({"dtype": np.float32}, "float32"),
    ],
    ids=str,
)
def test_the_dtype_on_cpu(arguments, expected):
    model = make(**arguments)
    assert model.dtype.name == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model.model))} == {expected}


@pytest.mark.parametrize("half", [{"use_bf16": True}, {"use_fp16": True}], ids=str)
def test_float32_together_with_half_precision_is_refused(half):
    with pytest.raises(ValueError, match="dtype='float32' contradicts"):
        make(dtype="float32", **half)


@pytest.mark.parametrize("dtype", ["float16", "float64", "fp32", "", np.int8])
def test_another_dtype_is_refused_with_those_there_are(dtype):
    with pytest.raises(ValueError, match="float32, bfloat16"):
        make(dtype=dtype)


def test_bfloat16_scores_are_near_those_of_float32_and_not_the_same(bert):
    # The median: this random checkpoint magnifies rounding a hundredfold in some pairs.
    differences = np.abs(np.subtract(make(use_bf16=True).compute_score(SHORT), bert.compute_score(SHORT)))
    assert differences.min() > 0
    assert np.median(differences) < 0.1


# Devices


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("cpu", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("cpu:3", [3]),
        (5, [5]),
        (["cpu:1", "cpu:4"], [1, 4]),
        ([7, 2], [7, 2]),
        (("cpu:0", 0, "cpu:0"), [0]),
        ([1, "cpu"], [1, 0, 2, 3, 4, 5, 6, 7]),
    ],
    ids=str,
)
def test_devices_are_found_by_platform_index_or_both(devices, expected):
    assert [device.id for device in find_devices(devices)] == expected


def test_a_jax_device_is_itself():
    device = jax.devices()[3]
    assert find_devices(device) == find_devices([device]) == [device]


@pytest.mark.parametrize(
    "devices", ["cpu:8", 8, -1, "cpu:-1", "cpu:x", "abacus", "abacus:0", ["cpu:0", "cpu:99"]], ids=str
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(devices):
    with pytest.raises(ValueError, match="no device") as caught:
        make(devices=devices)
    assert repr(devices[-1] if isinstance(devices, list) else devices) in str(caught.value)
    assert "cpu:7" in str(caught.value).lower()


def test_no_devices_are_refused():
    with pytest.raises(ValueError, match="empty"):
        make(devices=[])


@pytest.mark.parametrize(("devices", "expected"), [(None, range(8)), ("cpu:3", [3]), ([6, 1], [6, 1])], ids=str)
def test_a_reranker_lives_on_the_devices_asked_for(bert, devices, expected):
    model = make(devices=devices)
    assert [device.id for device in model.mesh.devices.flat] == list(expected)
    for leaf in jax.tree.leaves(nnx.state(model.model)):
        assert {device.id for device in leaf.devices()} == set(expected)
    assert largest_difference(model.compute_score(SHORT[:2]), bert.compute_score(SHORT[:2])) <= 1e-5


# Threads


def test_four_threads_at_once_give_the_scores_of_one():
    calls = [
        (SHORT, {}),
        (SHORT[:2], {"normalize": True}),
        (SHORT[::-1], {"max_length": 32}),
    ]
    alone = make()
    expected = [alone.compute_score(pairs, **call) for pairs, call in calls]
    shared = make()
    with ThreadPoolExecutor(4) as pool:
        futures = [[pool.submit(shared.compute_score, pairs, **call) for pairs, call in calls] for _ in range(4)]
        results = [[future.result() for future in thread] for thread in futures]
    assert results == [expected] * 4


# Progress


def test_the_progress_bar_can_be_switched_off_and_on(bert, capsys):
    bert.compute_score(SHORT, batch_size=2, show_progress_bar=False)
    assert capsys.readouterr() == ("", "")
    bert.compute_score(SHORT, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Scoring" in err
    assert f"{len(SHORT)}/{len(SHORT)}" in err


def test_by_default_the_progress_bar_shows_for_more_pairs_than_a_batch(capsys):
    model = FlaxReranker(BERT, devices="cpu:0", batch_size=len(SHORT))
    assert capsys.readouterr() == ("", "")
    model.compute_score(SHORT)
    assert capsys.readouterr() == ("", "")
    model.compute_score(SHORT, batch_size=2)
    assert "Scoring" in capsys.readouterr().err


def test_the_constructor_switches_the_progress_bar_for_all_calls(capsys):
    model = make(show_progress_bar=True)
    model.compute_score(SHORT[0])
    assert "Scoring" in capsys.readouterr().err
    model.compute_score(SHORT[0], show_progress_bar=False)
    assert capsys.readouterr() == ("", "")
