"""The scorer: what happens when memory runs out, and ahead of the first step."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import FlaxReranker
from flax_rerank.batching import FIT_FROM, Shape, Step
from flax_rerank.dtypes import DTypes
from flax_rerank.text.pairs import as_pairs

CASE = load_case("encoder-bert")
PAIRS = [tuple(pair) for pair in CASE.pairs[:3]] * 3
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1099511627776 bytes."


@pytest.fixture
def bert():
    return FlaxReranker(str(CASES / "encoder-bert"), devices="cpu:0", show_progress_bar=False)


class Failed:
    """What a step gives whose program failed on the device: the error comes when the result is read."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *args, **kwargs):
        raise self.error


def fail_above(model, tokens, error, late):
    """Make the model's steps of more than `tokens` tokens fail, at the call or when the result is read."""
    program = model._scorer._program
    seen = []

    def limited(shape, static):
        seen.append((shape.rows, shape.length))

        def fail(params, batch):
            if late:
                return Failed(error)
            raise error

        return program(shape, static) if shape.tokens <= tokens else fail

    model._scorer._program = limited
    return seen


def compiled(model):
    """How many programs the model's scorer has compiled."""
    return sum(program._cache_size() for program in model._scorer._programs.values())


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_does_not_fit_is_cut_until_it_does(bert, caplog, late):
    prepared = bert.prepare(PAIRS, table=(Shape(8, 64),))
    expected = bert.run(prepared).scores
    seen = fail_above(bert, 128, jax.errors.JaxRuntimeError(OUT_OF_MEMORY), late)
    with caplog.at_level(logging.WARNING, "flax_rerank"):
        output = bert.run(prepared)
    scores = output.scores
    assert (output.steps, output.shapes, output.computed_tokens) == (2, (Shape(2, 64),), 2 * 128)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert [record.getMessage() for record in caplog.records if "8 x 64" in record.getMessage()] == [
        "a step of 8 x 64 tokens does not fit into memory; from now on steps have 256 tokens at the most"
    ]
    assert bert._scorer.budget == 128
    # What was learned is kept: no later step is too large.
    seen.clear()
    assert bert.run(prepared).scores.tolist() == scores.tolist()
    assert set(seen) <= {(2, 64), (1, 64)}


def test_a_step_of_one_row_that_does_not_fit_says_so(bert):
    fail_above(bert, 0, jax.errors.JaxRuntimeError(OUT_OF_MEMORY), False)
    with pytest.raises(MemoryError, match=r"step of 1 x 64 tokens .* lower max_length"):
        bert.run(bert.prepare(PAIRS, table=(Shape(4, 64),)))


@pytest.mark.parametrize("late", [False, True])
def test_any_other_error_of_the_device_is_raised(bert, late):
    seen = fail_above(bert, 0, jax.errors.JaxRuntimeError("INTERNAL: the device is gone"), late)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is gone"):
        bert.compute_score(PAIRS)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("rows", "multiple", "parts"), [(8, 1, [4, 4]), (5, 1, [3, 2]), (16, 8, [8, 8]), (24, 8, [16, 8])]
)
def test_halves_of_a_step_keep_every_pair(rows, multiple, parts):
    halves = Step(np.arange(rows), Shape(rows, 32)).halves(multiple)
    assert [len(half.pairs) for half in halves] == parts
    assert np.concatenate([half.pairs for half in halves]).tolist() == list(range(rows))
    assert {half.shape for half in halves} == {Shape(parts[0], 32)}


def test_warmup_compiles_all_shapes_of_a_table_and_nothing_is_left_to_compile(bert):
    table = (Shape(3, 32), Shape(3, 64))
    prepared = bert.prepare(PAIRS, table=table)
    assert compiled(bert) == 0
    assert bert.warmup(prepared) > 0
    assert compiled(bert) == 2
    output = bert.run(bert.prepare(PAIRS, table=table))
    assert set(output.shapes) <= set(table)
    assert compiled(bert) == 2


def test_warmup_finds_out_what_does_not_fit(bert):
    seen = fail_above(bert, 128, jax.errors.JaxRuntimeError(OUT_OF_MEMORY), False)
    bert.warmup(bert.prepare(PAIRS, table=(Shape(4, 64),)))
    assert seen == [(4, 64), (2, 64)]
    assert bert._scorer.budget == 128


def test_a_scorer_forgets_the_programs_that_it_used_least_recently(bert, monkeypatch):
    monkeypatch.setattr("flax_rerank.scoring.MOST_PROGRAMS", 2)
    for length in (64, 96, 64, 128):
        bert.run(bert.prepare(PAIRS, table=(Shape(4, length),)))
    assert [shape for shape, _ in bert._scorer._programs] == [Shape(4, 64), Shape(4, 128)]


def test_a_reranker_keeps_few_of_the_tables_that_it_made(bert, monkeypatch):
    monkeypatch.setattr("flax_rerank.rerankers.base.MOST_TABLES", 2)
    many = [(str(number), "hi") for number in range(FIT_FROM)]
    for batch_size in (8, 4, 2, 1):
        bert.prepare(many, batch_size=batch_size)
    kept = bert._tables
    assert len(kept) == 2
    # Those of small calls are always the same. They take no place from the others.
    bert.prepare(PAIRS, batch_size=3)
    assert bert._tables == kept


# Parameters


def test_a_changed_parameter_counts_at_the_next_call_and_in_save(bert, tmp_path):
    before = bert.compute_score(PAIRS[:3])
    bert.params["head.out_proj.bias"] = bert.params["head.out_proj.bias"] + 1
    after = bert.compute_score(PAIRS[:3])
    np.testing.assert_allclose(after, np.add(before, 1), rtol=0, atol=1e-5)
    bert.save(tmp_path / "saved")
    assert FlaxReranker(str(tmp_path / "saved"), devices="cpu:0").compute_score(PAIRS[:3]) == after


def test_parameters_that_are_not_the_models_are_refused_by_name(bert, tmp_path):
    bias = bert.params["head.out_proj.bias"]
    for change, named in (
        (lambda params: params.update({"head.out_projection.bias": bias}), "head.out_projection.bias .* is left over"),
        (lambda params: params.pop("head.out_proj.bias"), "head.out_proj.bias is missing"),
        (lambda params: params.update({"head.out_proj.bias": bias[None]}), "head.out_proj.bias has shape"),
    ):
        params = dict(bert.params)
        change(params)
        with pytest.raises(ValueError, match=named):
            FlaxReranker.from_spec(bert.spec, params, bert.mesh)
        bert.params, before = params, bert.params
        for call in (lambda: bert.compute_score(PAIRS), lambda: bert.save(tmp_path / "saved")):
            with pytest.raises(ValueError, match=named):
                call()
        bert.params = before
    assert not (tmp_path / "saved").exists()


def test_changing_the_module_changes_neither_scores_nor_params(bert):
    before = bert.compute_score(PAIRS[:3])
    bert.model.head.out_proj.bias.set_value(bert.params["head.out_proj.bias"] + 1)
    assert bert.compute_score(PAIRS[:3]) == before


def test_parameters_may_be_stored_in_more_than_is_computed_in(bert):
    dtypes = DTypes(stored=np.float32, computed=jnp.bfloat16)
    mixed = FlaxReranker.from_spec(bert.spec, mesh=bert.mesh, dtypes=dtypes)
    assert {array.dtype.name for array in mixed.params.values()} == {"float32"}
    assert mixed.dtype.name == "bfloat16"
    difference = np.abs(np.subtract(mixed.compute_score(PAIRS[:3]), bert.compute_score(PAIRS[:3])))
    assert 0 < np.median(difference) < 0.1


# Equal pairs


def test_equal_pairs_are_computed_once(bert):
    alone, many = bert.score(PAIRS[:3]), bert.score(PAIRS[:3] * 300)
    assert (many.steps, many.computed_tokens, many.padding_tokens) == (
        alone.steps, alone.computed_tokens, alone.padding_tokens,
    )  # fmt: skip
    assert many.scores.tolist() == alone.scores.tolist() * 300


def test_pairs_are_checked_once_a_call(bert, monkeypatch):
    calls = []
    monkeypatch.setattr("flax_rerank.rerankers.base.as_pairs", lambda pairs: calls.append(pairs) or as_pairs(pairs))
    bert.compute_score(PAIRS[:1])
    bert.score(PAIRS[:1])
    assert len(calls) == 2


# The two halves of scoring


def test_preparing_and_running_is_scoring(bert):
    assert bert.run(bert.prepare(PAIRS)).scores.tolist() == bert.score(PAIRS).scores.tolist()


def test_pairs_longer_than_a_table_get_a_shape_of_their_own(bert):
    pairs = [("a", "b"), ("a", "b " * 40)]
    prepared = bert.prepare(pairs, table=(Shape(64, 16),), max_length=128)
    assert prepared.table == (Shape(64, 16), Shape(8, 128))
    assert [(step.pairs.tolist(), step.shape) for step in prepared.steps] == [([1, 0], Shape(8, 128))]


def test_pairs_at_fault_are_skipped_on_request(bert):
    pairs = [PAIRS[0], ("a\ud800", "b"), PAIRS[1], ("q " * 600, "p")]
    prepared = bert.prepare(pairs, skip_faulty=True, max_length=16, query_max_length=13)
    assert sorted(prepared.faults) == [1, 3]
    assert "query cannot be encoded" in prepared.faults[1]
    assert "no token of the passage is left" in prepared.faults[3]
    assert len(prepared) == 4
    assert prepared.tokens[[1, 3]].tolist() == [0, 0]
    output = bert.run(prepared)
    assert np.isnan(output.scores).tolist() == [False, True, False, True]
    alone = bert.compute_score([PAIRS[0], PAIRS[1]], max_length=16, query_max_length=13)
    np.testing.assert_allclose(output.scores[[0, 2]], alone, rtol=0, atol=1e-6)
    assert output.padding_tokens == output.computed_tokens - prepared.tokens.sum()


def test_a_pair_of_empty_texts_beside_a_pair_at_fault_has_its_score(bert):
    output = bert.run(bert.prepare([("", ""), ("a\ud800", "b"), ("", "")], skip_faulty=True))
    assert output.scores[[0, 2]].tolist() == bert.compute_score([("", "")]) * 2
    assert np.isnan(output.scores[1])


def test_nothing_but_pairs_at_fault_is_no_error(bert):
    output = bert.run(bert.prepare([("\udfff", "b")], skip_faulty=True))
    assert np.isnan(output.scores).tolist() == [True]
    assert output.steps == 0


def test_unknown_arguments_are_refused_before_anything_is_done(bert):
    with pytest.raises(TypeError, match="prompt"):
        bert.prepare(PAIRS, prompt="x")
