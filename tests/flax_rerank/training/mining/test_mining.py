"""Hard negatives and teacher scores."""

import json

import pytest
from reference_cases import CASES

from flax_rerank.cli import main
from flax_rerank.jobs.shards import ShardScorer
from flax_rerank.training.mining import Mined, MiningSettings, mine

BERT = str(CASES / "encoder-bert")
ANIMALS = ["cat", "dog", "fish", "bird", "horse", "cow"]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def settings(tmp_path):
    """`settings(**fields)` for a query about each animal, with passages that name it 1 to 8 times."""
    write(tmp_path / "train.jsonl", [{"query": name, "pos": [f"{name} answer"], "id": name} for name in ANIMALS])
    pool = [f"{' '.join([name] * count)} " + "word " * (9 - count) for name in ANIMALS for count in range(1, 9)]
    write(tmp_path / "pool.jsonl", [{"text": text} for text in pool])

    def make(**fields):
        files = {"input": tmp_path / "train.jsonl", "output": tmp_path / "mined.jsonl"}
        return MiningSettings(**files | {"candidate_pool": tmp_path / "pool.jsonl"} | fields)

    return make


def counts(record):
    """How often each negative names the animal of its query."""
    return [text.split().count(record["query"]) for text in record["neg"]]


def test_negatives_come_from_the_ranks_and_other_fields_stay(settings, tmp_path):
    # Passages rank by how often they name the animal; the positive is left out.
    mined = mine(settings(range_for_sampling="0-6", negative_number=5, sampling_strategy="top"))
    assert mined == Mined(6, 30, 0, 0)
    for record, name in zip(read(tmp_path / "mined.jsonl"), ANIMALS, strict=True):
        assert (record["query"], record["pos"], record["id"]) == (name, [f"{name} answer"], name)
        assert counts(record) == [8, 7, 6, 5, 4]
    mined = mine(settings(range_for_sampling="2-5", negative_number=5, fill=False, overwrite=True))
    assert mined == Mined(6, 18, 6, 0)
    assert [sorted(counts(record)) for record in read(tmp_path / "mined.jsonl")] == [[4, 5, 6]] * 6


def test_the_seed_decides_what_is_drawn(settings, tmp_path):
    drawn = []
    for seed in (1, 1, 2):
        mine(settings(range_for_sampling="0-9", negative_number=4, seed=seed, overwrite=True))
        drawn.append((tmp_path / "mined.jsonl").read_text())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({tuple(counts(record)) for record in read(tmp_path / "mined.jsonl")}) > 1  # not the same draw each line


def test_passages_are_drawn_at_random_where_the_ranks_have_too_few(settings, tmp_path):
    assert mine(settings(range_for_sampling="4-9", negative_number=12)) == Mined(6, 72, 0, 0)
    for record in read(tmp_path / "mined.jsonl"):
        assert len(set(record["neg"])) == 12
        found = [count for count in counts(record) if count]
        assert counts(record)[: len(found)] == found  # those that fill up come last
        assert max(found) <= 5  # and are not those that rank before


def test_no_negative_is_the_same_as_a_positive_or_the_query(tmp_path):
    examples = [{"query": "a cat", "pos": ["The cat sat.", "cat two"], "neg": ["old cat", "the  cat SAT."]}]
    write(tmp_path / "train.jsonl", examples)
    pool = ["the cat sat. ", "A  Cat", "CAT two", "new cat", "New cat", "old cat"]
    write(tmp_path / "pool.jsonl", [{"title": "", "text": text} for text in pool])
    files = {name: tmp_path / f"{name}.jsonl" for name in ("output",)}
    files |= {"input": tmp_path / "train.jsonl", "candidate_pool": tmp_path / "pool.jsonl"}
    mine(MiningSettings(**files, range_for_sampling="0-9"))
    assert sorted(read(tmp_path / "output.jsonl")[0]["neg"]) == ["new cat", "old cat"]
    mine(MiningSettings(**files, range_for_sampling="0-9", keep_negatives=True, overwrite=True))
    assert read(tmp_path / "output.jsonl")[0]["neg"] == ["old cat", "the  cat SAT.", "new cat"]


def test_negatives_come_from_a_run(tmp_path, settings):
    write(tmp_path / "queries.jsonl", [{"_id": "7", "text": "Cat"}, {"_id": "8", "text": "dog"}])
    write(tmp_path / "corpus.jsonl", [{"_id": str(number), "text": f"passage {number}"} for number in range(6)])
    lines = [f"7 Q0 {number} {number} {9 - number} x" for number in range(4)] + ["8 Q0 5 1 3 x"]
    (tmp_path / "run.txt").write_text("\n".join(lines))
    files = {"run": "run.txt", "queries": "queries.jsonl", "corpus": "corpus.jsonl"}
    given = {name: tmp_path / file for name, file in files.items()} | {"candidate_pool": None}
    strategy = {"sampling_strategy": "top", "fill": False, "max_score": 8.0}
    assert mine(settings(**given, **strategy, range_for_sampling="0-3")) == Mined(6, 3, 6, 4)
    # The queries that the run does not have are left out.
    assert [record["neg"] for record in read(tmp_path / "mined.jsonl")] == [["passage 1", "passage 2"], ["passage 5"]]
    write(tmp_path / "corpus.jsonl", [{"_id": "0", "text": "passage 0"}])
    with pytest.raises(ValueError, match=r"corpus.jsonl has no text for 4 passages of .*run.txt: '1'"):
        mine(settings(**given, overwrite=True))


@pytest.mark.parametrize(
    ("fields", "score", "accepted"),
    [
        ({}, 9.0, True),  # BM25 does not decide what is relevant
        ({"absolute_margin": 0.5}, 1.4, True),
        ({"absolute_margin": 0.5}, 1.6, False),
        ({"relative_margin": 0.25}, 1.5, True),
        ({"relative_margin": 0.25}, 1.6, False),
        ({"max_score": 1.0}, 1.1, False),
        ({"min_score": 1.0}, 0.9, False),
        ({"teacher": "x"}, 1.9, True),
        ({"teacher": "x"}, 2.0, False),
        ({"teacher": "x", "allow_false_positives": True}, 9.0, True),
    ],
)
def test_margins_are_below_the_lowest_positive(settings, fields, score, accepted):
    assert settings(**fields).accepts(score, [3.0, 2.0]) is accepted


def test_a_relative_margin_of_negative_scores_goes_down(settings):
    assert not settings(relative_margin=0.5).accepts(-2.5, [-2.0])
    assert settings(relative_margin=0.5).accepts(-3.0, [-2.0])


def test_a_teacher_that_is_interrupted_goes_on_to_the_same_output(settings, tmp_path, reranker, monkeypatch):
    fields = {"teacher": BERT, "negative_number": 3, "candidate_number": 6, "shard_rows": 10}
    fields |= {"range_for_sampling": "0-8"}
    mine(settings(**fields), devices="cpu:0", max_length=64)
    whole = tmp_path / "mined.jsonl"
    records = read(whole)
    bert = reranker("encoder-bert", {"max_length": 64})
    for record in records:
        passages = [*record["pos"], *record["neg"]]
        scores = [*record["pos_scores"], *record["neg_scores"]]
        assert scores == pytest.approx(bert.compute_score([(record["query"], text) for text in passages]), abs=1e-5)
        assert max([*record["neg_scores"], -1e9]) < min(record["pos_scores"])
    assert 0 < sum(len(record["neg"]) for record in records) < 18  # some passages scored above the positive

    write_shard, written = ShardScorer.write, []

    def stop_at_the_third(self, scored):
        if len(written) == 2:
            raise SystemExit(143)
        written.append(scored.marker["shard"])
        return write_shard(self, scored)

    monkeypatch.setattr(ShardScorer, "write", stop_at_the_third)
    again = settings(**fields, output=tmp_path / "again.jsonl")
    with pytest.raises(SystemExit):
        mine(again, devices="cpu:0", max_length=64)
    monkeypatch.setattr(ShardScorer, "write", lambda self, scored: written.append(scored) or write_shard(self, scored))
    mine(again, devices="cpu:0", max_length=64)
    assert len(written) == 5  # of 42 rows, each shard once
    assert (tmp_path / "again.jsonl").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "again.jsonl.mining").exists()


def test_a_teacher_alone_adds_scores(settings, tmp_path, reranker):
    write(tmp_path / "train.jsonl", [{"query": "cat", "pos": ["a"], "neg": ["b", "c"], "neg_scores": [1]}])
    mine(settings(teacher=BERT, negative_number=0, keep_negatives=True), devices="cpu:0")
    (record,) = read(tmp_path / "mined.jsonl")
    assert record["neg"] == ["b", "c"]
    expected = reranker("encoder-bert").compute_score([("cat", text) for text in "abc"])
    assert [*record["pos_scores"], *record["neg_scores"]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "a"}', r'train.jsonl:2: "pos" is not a list of strings'),
        ('{"query": "a", "pos": []}', r'train.jsonl:2: "pos" is empty'),
        ('{"query": "a", "pos": ["b"], "neg": [""]}', r"train.jsonl:2: the passage is empty"),
        ('{"query": "a", "pos": "b"}', r'train.jsonl:2: "pos" is not a list of strings'),
        ("nonsense", r"train.jsonl:2: not JSON"),
    ],
)
def test_a_line_at_fault_is_named(settings, tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(f'{{"query": "a", "pos": ["b"]}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        mine(settings())
    assert not (tmp_path / "mined.jsonl").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"range_for_sampling": "10"}, "it must be like 10-210"),
        ({"range_for_sampling": "9-9"}, "it must be like 10-210"),
        ({"negative_number": -1}, "negative_number is -1; it must be at least 0"),
        ({"negative_number": 0}, "give a teacher and keep_negatives"),
        ({"run": "run.txt"}, "run, queries and corpus belong together"),
        ({"run": "r", "queries": "q", "corpus": "c"}, r"give candidate_pool \(to search by BM25\) or run"),
        ({"absolute_margin": 0.1, "allow_false_positives": True}, "give it or allow_false_positives"),
        ({"candidate_number": 9}, "candidate_number is of a teacher"),
    ],
)
def test_settings_at_fault_are_named(settings, fields, message):
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_the_command_mines_and_refuses_to_replace_its_output(settings, tmp_path, capsys):
    arguments = ["mine", "--input", str(tmp_path / "train.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    arguments += ["--candidate-pool", str(tmp_path / "pool.jsonl"), "--negative-number", "2", "--no-progress"]
    settings()
    assert main(arguments) == 0
    assert "out.jsonl: 12 negatives added to 6 lines\n" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "out.jsonl exists. Give another output, or overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--max-length", "9"]) == 1
    assert "max_length is a setting of a teacher, and none is given" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--teacher", BERT, "--cutoff-layers", "2"]) == 1
    assert "--cutoff-layers is not an option for" in capsys.readouterr().err
