"""Batches: what is in them, their shapes, and that each step can be made by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference_cases import CASES

from flax_rerank.evaluation import open_set
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import open_spec
from flax_rerank.training.data import DataError, DataSettings, open_data

EXAMPLES = Path(__file__).parents[4] / "examples"
WORDS = ("the", "panda", "eats", "bamboo", "on", "a", "high", "mountain", "near", "water", "and", "tables")


@pytest.fixture(scope="module")
def spec():
    return open_spec(CASES / "encoder-bert", RerankerModelClass.ENCODER_ONLY_BASE)


def rows(count, negatives=5):
    """Rows whose texts are all different, of very different lengths."""

    def text(kind, number, k=0):
        words = [WORDS[(number + word) % len(WORDS)] for word in range(3 + number % 17)]
        return " ".join([kind, str(number), str(k), *words])

    return [
        {
            "query": text("query", number),
            "pos": [text("good", number, k) for k in range(2)],
            "neg": [text("bad", number, k) for k in range(negatives)],
            "pos_scores": [number + 0.5] * 2,
            "neg_scores": [number - 0.5] * negatives,
        }
        for number in range(count)
    ]


def opened(spec, data, groups=2, max_steps=None, loss="cross_entropy", **settings):
    settings = DataSettings(**{"train_group_size": 4, "query_max_len": 16, "passage_max_len": 48} | settings)
    return open_data(data, spec, settings, groups_per_micro=groups, max_steps=max_steps, loss=loss)


def texts(spec, batch):
    """Query and passage of each row that counts, as the tokenizer reads them back; [micro batch][group][passage]."""
    *shape, size = batch.mask.shape
    ids = batch.input_ids.reshape(*shape, size, -1)
    lengths, starts = (array.reshape(batch.mask.shape) for array in (batch.lengths, batch.passage_starts))

    def decode(place):
        row, end, start = ids[place], lengths[place], starts[place]
        assert not row[end:].any()
        return tuple(
            spec.tokenizer.backend.decode(part.tolist()) for part in (row[1 : start - 1], row[start : end - 1])
        )

    return [
        [[decode((m, g, s)) for s in range(size) if batch.mask[m, g, s]] for g in range(shape[1])]
        for m in range(shape[0])
    ]


def queries(spec, batch):
    return [group[0][0] for micro in texts(spec, batch) for group in micro if group]


def equal(batch, other):
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in zip(batch, other, strict=True)
    )


def test_an_epoch_has_each_query_once_and_the_next_one_other_passages(spec):
    data = opened(spec, rows(21), gradient_accumulation_steps=2, num_train_epochs=2)
    assert (data.examples, data.steps_per_epoch, data.steps) == (21, 6, 12)
    batches = list(data.batches())
    assert [info.step for _, info in batches] == list(range(12))
    assert [info.epoch for _, info in batches] == [0] * 6 + [1] * 6
    first, second = (
        [query for batch, _ in part for query in queries(spec, batch)] for part in (batches[:6], batches[6:])
    )
    assert len(first) == len(set(first)) == 21
    assert sorted(second) == sorted(first)
    assert second != first
    passages = [
        {group[0][0]: group for batch, _ in part for micro in texts(spec, batch) for group in micro if group}
        for part in (batches[:6], batches[6:])
    ]
    assert sum(passages[0][query] != passages[1][query] for query in first) > 15


def test_what_a_group_holds(spec):
    """One of the row's positives, and negatives, each with its label and its teacher score."""
    data = opened(spec, rows(8), knowledge_distillation=True)
    assert data.steps == 4
    for batch, info in data.batches():
        assert batch.input_ids.dtype == batch.lengths.dtype == batch.passage_starts.dtype == np.int32
        assert batch.labels.dtype == batch.teacher.dtype == np.float32
        assert batch.mask.all()
        assert info.groups == 2
        for group, (labels, teacher) in zip(
            texts(spec, batch)[0], zip(batch.labels[0], batch.teacher[0], strict=True), strict=True
        ):
            number = int(group[0][0].split()[1])
            assert {query.split()[1] for query, _ in group} == {str(number)}
            assert [passage.split()[:2] for _, passage in group] == [["good", str(number)]] + [
                ["bad", str(number)]
            ] * 3
            assert len({passage for _, passage in group}) == 4
            assert labels.tolist() == [1, 0, 0, 0]
            assert teacher.tolist() == [number + 0.5] + [number - 0.5] * 3


def test_a_short_step_is_filled_with_groups_that_do_not_count(spec):
    (batch, info), = opened(spec, rows(3), gradient_accumulation_steps=2).batches()  # fmt: skip
    assert batch.mask.any(axis=-1).tolist() == [[True, True], [True, False]]
    assert batch.lengths.reshape(4, 4)[3].tolist() == [1] * 4
    assert info.groups == 3
    assert info.real_tokens == batch.lengths.sum() - 4
    assert info.computed_tokens == 16 * batch.input_ids.shape[-1]


@pytest.mark.parametrize("start", [1, 31, 32, 50, 64, 77])
def test_a_run_goes_on_at_any_step(spec, start):
    """Windows end at 32 and 64, and the first epoch at 50."""
    data = opened(spec, rows(100, negatives=2), num_train_epochs=1.6, in_batch_negatives=1)
    assert data.steps == 80
    whole = list(data.batches())[start:]
    again = list(opened(spec, rows(100, negatives=2), num_train_epochs=1.6, in_batch_negatives=1).batches(start))
    assert [info for _, info in again] == [info for _, info in whole]
    assert all(equal(batch, other) for (batch, _), (other, _) in zip(again, whole, strict=True))


def test_another_seed_makes_other_batches(spec):
    (first, _), *_ = opened(spec, rows(20), seed=1).batches()
    (second, _), *_ = opened(spec, rows(20), seed=2).batches()
    assert not equal(first, second)


def test_lengths(spec):
    """A run compiles six programs at most, and queries of similar length share steps."""
    data = opened(spec, rows(400))
    shapes = {batch.input_ids.shape for batch, _ in data.batches()}
    assert {length for *_, length in shapes} <= set(data.lengths)
    assert len(data.lengths) <= 6
    assert data.lengths[-1] == 64
    grouped, mixed = (
        sum(info.computed_tokens - info.real_tokens for _, info in each.batches())
        for each in (data, opened(spec, rows(400), group_by_length=False))
    )
    assert grouped < 0.5 * mixed


def test_lengths_that_the_sample_did_not_have(spec):
    """Lengths come from a sample of the data; longer inputs have one too."""
    data = opened(spec, rows(1))
    data._sources[0]._rows._rows[0]["query"] += " panda" * 200
    (batch, _), = data.batches()  # fmt: skip
    assert batch.input_ids.shape[-1] == 64


def test_max_steps(spec):
    data = opened(spec, rows(4), max_steps=5)
    assert data.steps == len(list(data.batches())) == 5


def test_few_negatives_repeat(spec):
    (batch, _), = opened(spec, rows(2, negatives=2)).batches()  # fmt: skip
    for group in texts(spec, batch)[0]:
        assert sorted({passage.split()[0] + passage.split()[2] for _, passage in group[1:]}) == ["bad0", "bad1"]
        assert len(group) == 4


def test_in_batch_negatives(spec):
    """At least as many as asked come from other queries, and more where a query has few of its own."""
    pairs = [{"query": row["query"], "positive": row["pos"][0]} for row in rows(6)]
    # What is good for a query is no negative of it, nor of an equal one.
    pairs[1]["query"] = pairs[0]["query"]
    pairs[3]["positive"] = pairs[2]["positive"]
    (batch, _), = opened(spec, pairs, groups=6, in_batch_negatives=1).batches()  # fmt: skip
    assert batch.mask.all()
    for group, labels in zip(texts(spec, batch)[0], batch.labels[0], strict=True):
        number = group[0][0].split()[1]
        others = [passage.split()[1] for _, passage in group[1:]]
        assert len({passage for _, passage in group}) == 4
        assert number not in others
        assert number != "0" or "1" not in others
        assert labels.tolist() == [1, 0, 0, 0]
    (batch, _), = opened(spec, rows(3), groups=3, in_batch_negatives=1).batches()  # fmt: skip
    for group in texts(spec, batch)[0]:
        number = group[0][0].split()[1]
        assert [passage.split()[1] == number for _, passage in group] == [True, True, True, False]


def test_graded_groups(spec):
    """All passages of a query with their labels, each once, a positive first; the rest of the group is masked."""
    data = [{"query": "query", "docs": ["a", "b", "c"], "labels": [0, 2, 1]}]
    (batch, _), = opened(spec, data).batches()  # fmt: skip
    (group, _), = texts(spec, batch)  # fmt: skip
    assert {passage: label for (_, passage), label in zip(group, batch.labels[0, 0], strict=False)} == {
        "a": 0,
        "b": 2,
        "c": 1,
    }
    assert group[0][1] in "bc"
    assert batch.mask[0, 0].tolist() == [True, True, True, False]
    (batch, _), = opened(spec, rows(1, negatives=1), graded=True).batches()  # fmt: skip
    assert sorted(batch.labels[0, 0].tolist()) == [0, 0, 1, 1]
    assert batch.mask[0, 0].tolist() == [True, True, True, False]


def test_a_row_may_have_its_own_prompts(spec):
    """A row without one, beside rows with one, has that of the settings."""
    data = [
        {"query": "q", "pos": ["a"], "neg": ["b"], "query_prompt": "own: "},
        {"query": "r", "pos": ["a"], "neg": ["b"]},
    ]
    instructions = {"query_instruction_for_rerank": "all: ", "passage_instruction_for_rerank": "p: "}
    (batch, _), = opened(spec, data, **instructions).batches()  # fmt: skip
    found = {group[0] for group in texts(spec, batch)[0]}
    assert found == {("own : q", "p : a"), ("all : r", "p : a")}


def test_files_in_any_order(spec, tmp_path):
    """Files of several forms, by name or in a folder; what they hold is in `digests`."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    files[1].write_text(json.dumps({"query": "q", "positive": "a", "negative": "b"}) + "\n")
    data, other = opened(spec, files), opened(spec, files[::-1])
    assert data.examples == 4
    assert all(equal(a, b) for (a, _), (b, _) in zip(data.batches(), other.batches(), strict=True))
    assert opened(spec, [tmp_path]).digests == data.digests
    before = data.digests
    assert before == other.digests
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows(2)))
    after = opened(spec, files).digests
    assert before.keys() == after.keys() == {str(files[0]), str(files[1])}
    assert before[str(files[0])] != after[str(files[0])]
    assert before[str(files[1])] == after[str(files[1])]


def test_a_trec_run(spec, tmp_path):
    """Positives are judged; the others of the run are negatives, but not one with the text of a positive."""
    (tmp_path / "qrels").mkdir()
    texts_of = {"d1": "good", "d2": "bad", "d3": "worse", "d4": "good", "d5": "missed"}
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts_of.items())
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "query"}\n')
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t2\nq\td2\t-1\nq\td5\t1\n")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nother\td1\t2\n")
    (tmp_path / "run.txt").write_text("".join(f"q Q0 d{n} {n} {-n} tag\n" for n in (4, 3, 2, 1)))
    data = opened(spec, [tmp_path], graded=True, max_steps=1)
    (batch, _), = data.batches()  # fmt: skip
    found = zip(texts(spec, batch)[0][0], batch.labels[0, 0], strict=True)
    assert {(passage, float(label)) for (_, passage), label in found} == {
        ("good", 2.0),
        ("bad", 0.0),
        ("worse", 0.0),
        ("missed", 1.0),
    }
    assert {name.removeprefix(f"{tmp_path}/") for name in data.digests} == {
        *("queries.jsonl", "corpus.jsonl", "run.txt", "qrels/train.tsv", "qrels/test.tsv")
    }
    (tmp_path / "run.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no run\.txt in"):
        opened(spec, [tmp_path])


def test_the_bundled_data(spec):
    """It trains on no passage that is a candidate in its evaluation."""
    data = opened(spec, [EXAMPLES / "train.jsonl"], groups=8)
    assert (data.examples, data.steps) == (160, 20)
    evaluation = set(open_set(EXAMPLES / "evaluation").passages.values())
    assert not evaluation & {passage for number in range(160) for passage in data._example(number).passages}


PAIR = {"query": "q", "positive": "a"}
LABELLED = {"query": "q", "passage": "a", "label": 0}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "there is no training data"),
        ([PAIR], {}, "row 0: the query has no negatives: add some, or set in_batch_negatives"),
        ([PAIR], {"knowledge_distillation": True}, "row 0: teacher scores are missing"),
        ([PAIR], {"loss": "margin_mse"}, "row 0: teacher scores are missing"),
        ([PAIR], {"loss": "distillation", "in_batch_negatives": 1}, "in_batch_negatives have no teacher scores"),
        ([PAIR], {"prompt": "p", "in_batch_negatives": 1}, "the prompt format has no place for a prompt"),
        ([LABELLED], {}, "row 0: the query has no positive"),
        ([LABELLED | {"label": 31}], {}, "row 0: the label 31.0 is not between 0 and 30"),
        ([LABELLED | {"label": 2}], {"loss": "binary_cross_entropy"}, "row 0: the label 2.0 is not between 0 and 1"),
        ([LABELLED | {"label": 1}, LABELLED], {}, "row 0: a positive is a negative of the same query too: 'a'"),
    ],
)
def test_data_at_fault(spec, data, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        opened(spec, data, **options)


def test_losses_of_single_passages_need_no_positive(spec):
    (batch, _), = opened(spec, [LABELLED], loss="binary_cross_entropy").batches()  # fmt: skip
    assert batch.mask.sum() == 1


def test_an_instruction_without_room_is_named_by_its_row(spec):
    data = rows(1)[0] | {"query_prompt": "panda " * 90}
    with pytest.raises(DataError, match="row 0: no token of the query is left"):
        opened(spec, [data])


def test_a_fault_in_a_thread_reaches_the_caller(spec):
    data = opened(spec, rows(70))
    data._sources[0]._rows._rows[69].pop("pos")
    with pytest.raises(DataError, match='row 69: "pos" is missing'):
        list(data.batches())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_group_size": 0}, "train_group_size is 0; it must be at least 1"),
        ({"shuffle_ratio": 1.5}, "shuffle_ratio is 1.5"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0"),
        ({"in_batch_negatives": 4}, "in_batch_negatives 4 leaves no room"),
        ({"in_batch_negatives": 1, "graded": True}, "in_batch_negatives have no labels"),
        ({"query_instruction_format": "{text}"}, "the format '{text}' takes"),
    ],
)
def test_settings_at_fault(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DataSettings(**{"train_group_size": 4} | options)
