"""Token compression against a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_rerank.models.compression import compress as traced

compress = jax.jit(traced, static_argnames=("ratio", "suffix_length", "new_length"))

FEATURES = 5
SUFFIX = 3


def in_a_loop(row, length, start, ratio, suffix):
    """The compressed states of one row, [new length, features], in float64."""
    end = max(length - suffix, start)
    out = [row[position] for position in range(min(start, length))]
    for first in range(start, end, ratio):
        members = [row[position] for position in range(first, min(first + ratio, end))]
        out.append(np.mean(members, axis=0))
    out += [row[position] for position in range(end, length)]
    return np.array(out)


def batch(ratio, seed=0):
    """Rows whose passages have 0, 1, ratio, ratio + 1, ... tokens, behind queries of many lengths."""
    passages = np.array([0, 1, ratio - 1, ratio, ratio + 1, 2 * ratio, 5 * ratio - 1, 40])
    starts = np.array([4, 9, 1, 6, 7, 2, 11, 5])
    lengths = starts + passages + SUFFIX
    x = np.random.default_rng(seed).standard_normal((len(lengths), lengths.max() + 5, FEATURES), dtype=np.float32)
    return x, lengths, starts


def run(x, lengths, starts, ratio, new_length, dtype=jnp.float32, suffix=SUFFIX):
    new, new_lengths = compress(
        jnp.asarray(x, dtype),
        jnp.asarray(lengths, jnp.int32),
        jnp.asarray(starts, jnp.int32),
        ratio=ratio,
        suffix_length=suffix,
        new_length=new_length,
    )
    assert new.shape == (len(x), new_length, FEATURES)
    assert new.dtype == dtype
    return np.asarray(new), np.asarray(new_lengths)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_groups_of_passage_tokens_are_averaged_as_a_loop_does(ratio):
    x, lengths, starts = batch(ratio)
    expected = [in_a_loop(*row, ratio, SUFFIX) for row in zip(x.astype(np.float64), lengths, starts, strict=True)]
    new, new_lengths = run(x, lengths, starts, ratio, new_length=max(map(len, expected)))
    np.testing.assert_array_equal(new_lengths, [len(row) for row in expected])
    for got, row in zip(new, expected, strict=True):
        np.testing.assert_allclose(got[: len(row)], row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_query_and_prompt_stay_bit_for_bit(dtype):
    ratio = 4
    x, lengths, starts = batch(ratio)
    new, new_lengths = run(x, lengths, starts, ratio, new_length=60, dtype=dtype)
    x = np.asarray(jnp.asarray(x, dtype))
    for row in range(len(x)):
        np.testing.assert_array_equal(new[row, : starts[row]], x[row, : starts[row]])
        np.testing.assert_array_equal(
            new[row, new_lengths[row] - SUFFIX : new_lengths[row]], x[row, lengths[row] - SUFFIX : lengths[row]]
        )


def test_compressing_twice_compounds():
    ratio = 2
    x, lengths, starts = batch(ratio)
    once, once_lengths = run(x, lengths, starts, ratio, new_length=50)
    twice, twice_lengths = run(once, once_lengths, starts, ratio, new_length=40)
    for row in range(len(x)):
        first = in_a_loop(x[row].astype(np.float64), lengths[row], starts[row], ratio, SUFFIX)
        expected = in_a_loop(first, len(first), starts[row], ratio, SUFFIX)
        assert twice_lengths[row] == len(expected)
        np.testing.assert_allclose(twice[row, : len(expected)], expected, rtol=0, atol=1e-6)


def test_a_result_longer_than_needed_holds_the_same():
    ratio = 2
    x, lengths, starts = batch(ratio)
    needed = int((starts + -(-(lengths - starts - SUFFIX) // ratio) + SUFFIX).max())
    tight, tight_lengths = run(x, lengths, starts, ratio, new_length=needed)
    roomy, roomy_lengths = run(x, lengths, starts, ratio, new_length=needed + 9)
    np.testing.assert_array_equal(tight_lengths, roomy_lengths)
    for row, length in enumerate(tight_lengths):
        np.testing.assert_array_equal(tight[row, :length], roomy[row, :length])


def test_a_row_without_a_pair_stays_as_it_is():
    """Such a row has one token and says that its passage starts behind it."""
    x = np.random.default_rng(3).standard_normal((1, 16, FEATURES), dtype=np.float32)
    new, new_lengths = run(x, [1], [1], 2, new_length=8)
    assert new_lengths.tolist() == [1]
    np.testing.assert_array_equal(new[0, 0], x[0, 0])


def test_padding_behind_a_row_does_not_enter_its_last_group():
    x, lengths, starts = batch(4)
    spoiled = x.copy()
    for row, length in enumerate(lengths):
        spoiled[row, length:] = 1e9
    new, new_lengths = run(x, lengths, starts, 4, new_length=60)
    other, _ = run(spoiled, lengths, starts, 4, new_length=60)
    for row, length in enumerate(new_lengths):
        np.testing.assert_array_equal(new[row, :length], other[row, :length])
