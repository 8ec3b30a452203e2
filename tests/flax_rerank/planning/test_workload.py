import json

import numpy as np
import pytest
from reference_cases import CASES

from flax_rerank.planning.published import find_spec
from flax_rerank.planning.workload import longest, of_lengths, of_sample


def test_by_default_all_pairs_have_the_greatest_length(small):
    pairs = longest(500).shard(small())
    assert set(pairs.lengths.tolist()) == {512}
    assert len(pairs) == 500


def test_lengths_are_drawn_as_often_as_they_are_counted(small, tmp_path):
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps({"100": 3, "200": 1, "9000": 4}), encoding="utf-8")
    workload = of_lengths(path, 10**6, query_tokens=12)
    pairs = workload.shard(small())
    lengths, counts = np.unique(pairs.lengths, return_counts=True)
    assert workload.pairs == 10**6
    assert lengths.tolist() == [100, 200, 512]
    assert counts / counts.sum() == pytest.approx([0.375, 0.125, 0.5], abs=0.02)
    assert set(pairs.query_lengths.tolist()) == {12}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "[0]", "3", '{"5": -1}', "[1.7, 300]"])
def test_other_files_are_no_lengths(text, tmp_path):
    path = tmp_path / "lengths.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="neither a JSON list of lengths nor"):
        of_lengths(path, None, 16)


def test_a_sample_is_tokenised_and_drawn_from(tmp_path, reranker):
    spec = find_spec(str(CASES / "encoder-xlmr"))
    sample = [("what is panda?", "a bear"), ("what is panda?", "a bear " * 40)]
    expected = reranker("encoder-xlmr").prepare(sample).tokens
    assert of_sample(tmp_path / "s", sample, 2).shard(spec).lengths.tolist() == expected.tolist()
    drawn = of_sample(tmp_path / "s", sample, 1000).shard(spec)
    assert set(drawn.lengths.tolist()) == set(expected.tolist())
    # In the job, they stand for different pairs: each of them is computed.
    assert len(drawn.distinct()[1]) == len(drawn) == 1000


def test_a_sample_takes_the_models_tokenizer(small, tmp_path):
    with pytest.raises(ValueError, match=r"only the config of .* is known: give its folder, or the lengths"):
        of_sample(tmp_path / "s", [("a", "b")], 1).shard(small())
