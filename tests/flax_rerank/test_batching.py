"""Plans: every pair once, in few shapes, with little padding."""

import json
from pathlib import Path

import numpy as np
import pytest

from flax_rerank.batching import AS_GOOD, Planner, Shape, computed_tokens, extended, max_step_tokens

# Tokens of the first thousand judged pairs of a DBpedia-Entity subset, as a BERT tokenizer makes them.
DBPEDIA = np.array(json.loads((Path(__file__).parents[1] / "data" / "dbpedia_lengths.json").read_text()))


def shapes_of(steps):
    return {step.shape for step in steps}


def test_a_thousand_pairs_take_few_shapes_and_little_padding():
    planner = Planner(limit=512, budget=128 * 512)
    steps = planner.steps(DBPEDIA, planner.choose(DBPEDIA))
    assert len(DBPEDIA) == 1000
    assert len(shapes_of(steps)) <= 10
    assert 1 - DBPEDIA.sum() / computed_tokens(steps) <= 0.10


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("count", [1, 7, 100, 255, 256, 1000])
def test_every_pair_is_in_one_step_that_it_fits(count, multiple):
    planner = Planner(limit=512, budget=16 * 512, multiple=multiple)
    lengths = DBPEDIA[:count]
    table = planner.choose(lengths)
    steps = planner.steps(lengths, table)
    assert sorted(np.concatenate([step.pairs for step in steps])) == list(range(count))
    for step in steps:
        assert len(step.pairs) <= step.shape.rows
        assert lengths[step.pairs].max() <= step.shape.length <= 512
        assert step.shape.rows % multiple == 0
        assert step.shape.rows * step.shape.length <= max(planner.budget, multiple * step.shape.length)
    assert len(shapes_of(steps)) <= len(table) + 1


def test_one_pair_takes_one_row():
    planner = Planner(limit=512, budget=128 * 512)
    lengths = np.array([40])
    (step,) = planner.steps(lengths, planner.choose(lengths))
    assert step.shape == Shape(1, 48)


@pytest.mark.parametrize(
    ("limit", "ends"),
    [
        (320, [32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]),
        (100, [32, 48, 64, 80, 96, 100]),
        (20, [20]),
    ],
)
def test_the_default_table_ends_at_the_limit(limit, ends):
    table = Planner(limit=limit, budget=128 * 512).default_table(np.array([10]))
    assert [shape.length for shape in table] == ends


def test_a_batch_size_of_one_runs_one_long_pair_at_a_time():
    planner = Planner(limit=512, budget=512)
    lengths = np.full(5, 500)
    assert [step.shape for step in planner.steps(lengths, planner.choose(lengths))] == [Shape(1, 512)] * 5


def test_steps_on_a_cpu_stay_small():
    lengths = np.tile(DBPEDIA, 100)
    for platform, width, most in (("cpu", 384, 1024), ("cpu", 1024, 4096), ("tpu", 384, 16384), ("gpu", 1024, 16384)):
        planner = Planner(512, 128 * 512, max_step_tokens=max_step_tokens(platform, width))
        assert 0.9 * most < max(shape.tokens for shape in planner.choose(lengths)) <= most


def test_fitting_is_exact_where_there_are_few_lengths():
    planner = Planner(limit=512, budget=128 * 512)
    lengths = np.repeat([16, 40, 200], 200)
    steps = planner.steps(lengths, planner.choose(lengths))
    assert {step.shape.length for step in steps} == {16, 40, 200}
    assert 1 - lengths.sum() / computed_tokens(steps) < 0.03


def test_a_fitted_table_beats_the_default_one():
    planner = Planner(limit=512, budget=128 * 512)
    fitted, default = (
        planner.steps(DBPEDIA, table) for table in (planner.fit_table(DBPEDIA), planner.default_table(DBPEDIA))
    )
    assert computed_tokens(fitted) < computed_tokens(default)
    assert len(shapes_of(fitted)) <= 10 < len(shapes_of(default))


def test_a_table_that_serves_as_well_is_used_again():
    planner = Planner(limit=512, budget=128 * 512)
    table = planner.choose(DBPEDIA)
    shuffled = np.random.default_rng(0).permutation(DBPEDIA)[:900]
    again = planner.choose(shuffled, [table])
    assert again == table
    fitted = computed_tokens(planner.steps(shuffled, planner.fit_table(shuffled)))
    assert computed_tokens(planner.steps(shuffled, again)) <= AS_GOOD * fitted


def test_a_table_that_is_too_short_or_too_coarse_is_not_used_again():
    planner = Planner(limit=512, budget=128 * 512)
    short = planner.choose(np.minimum(DBPEDIA, 100))
    assert planner.choose(DBPEDIA, [short]) != short
    coarse = (Shape(2, 512),)
    assert planner.choose(DBPEDIA, [coarse]) != coarse


def test_rows_above_the_budget_are_not_used_again():
    table = Planner(limit=512, budget=128 * 512).choose(np.tile(DBPEDIA, 20))
    small = Planner(limit=512, budget=512)
    steps = small.steps(DBPEDIA, small.choose(DBPEDIA, [table]))
    assert max(step.shape.rows * step.shape.length for step in steps) <= 512


def test_equal_lengths_keep_their_order():
    planner = Planner(limit=64, budget=64)
    steps = planner.steps(np.full(6, 30), (Shape(2, 32),))
    assert [step.pairs.tolist() for step in steps] == [[0, 1], [2, 3], [4, 5]]


# Compression


def test_a_shape_says_how_long_its_rows_are_after_each_compression():
    # Of 100 tokens, 60 are a passage: 15 after one compression by 4, and 4 after two.
    assert Shape(1, 100, 40).compressed(4, 2) == (56, 48)
    assert Shape(1, 61, 58).compressed(8, 1) == (61,)
    assert Shape(1, 100).compressed(4, 2) == (100, 100)


@pytest.mark.parametrize("count", [5, 700])
def test_shapes_of_a_first_call_take_every_later_pair(count):
    """Also pairs that are longer, or have more around their passage, than all of the first call."""
    rng = np.random.default_rng(0)
    limit, most = 512, 390
    planner = Planner(limit, budget=16 * 512, most_around=most)

    def pairs(number, longest, longest_query):
        around = rng.integers(10, longest_query, number)
        return np.minimum(around + rng.integers(1, longest, number), limit), around

    lengths, around = pairs(count, 200, 60)
    table = extended(planner.choose(lengths, around=around), limit, most, 1)
    assert (table[-1].length, table[-1].around) == (limit, most)
    lengths, around = pairs(3000, limit, most)
    steps = planner.steps(lengths, table, around, fixed=True)
    assert sorted(np.concatenate([step.pairs for step in steps])) == list(range(3000))
    for step in steps:
        assert step.shape in table
        of_step, stay = lengths[step.pairs], around[step.pairs]
        assert of_step.max() <= step.shape.length
        compressed = stay + -(-(of_step - stay) // 4)
        assert compressed.max() <= step.shape.compressed(4, 1)[0]


def test_few_bounds_serve_queries_of_any_length():
    planner = Planner(limit=512, budget=128 * 512, most_around=390)
    tables = {planner.choose(np.array([400]), around=np.array([around])) for around in range(10, 390)}
    assert len(tables) <= 18


def test_a_table_for_much_longer_queries_is_not_used_again():
    planner = Planner(limit=512, budget=128 * 512, most_around=390)
    lengths = np.minimum(DBPEDIA + 200, 512)
    short, long = np.full(1000, 20), np.full(1000, 200)
    table = planner.choose(lengths, around=long)
    assert planner.choose(lengths, [table], long - 1) == table
    assert planner.choose(lengths, [table], short) != table
