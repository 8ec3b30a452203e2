"""Jobs from Python: `score_files`, and what its options mean."""

import json
from contextlib import ExitStack

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference_cases import CASES, largest_difference, load_case

from flax_rerank import FlaxAutoReranker, FlaxReranker, RerankerModelClass, ShardingRules
from flax_rerank.jobs import JobOptions, score_files
from flax_rerank.jobs.engines import LocalEngine, RayEngine, engine_of
from flax_rerank.jobs.inputs_outputs import output_of, source_of
from flax_rerank.jobs.sources import Limits

BERT = CASES / "encoder-bert"


@pytest.fixture
def pairs(tmp_path):
    """A file of five pairs."""
    sound = [pair for pair in load_case("encoder-bert").pairs if all(map(str.strip, pair))][:5]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": query, "passage": passage}) + "\n" for query, passage in sound))
    return path


def test_files_are_scored_as_pairs_are(tmp_path, pairs, reranker):
    settings = {"max_length": 64, "normalize": True}
    options = JobOptions(input=pairs, output=tmp_path / "scores.jsonl", shard_rows=3)
    result = score_files(str(BERT), options, devices="cpu:0", **settings)
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    scores = [record.pop("score") for record in records]
    assert [json.dumps(record) for record in records] == pairs.read_text().splitlines()
    expected = reranker("encoder-bert", settings).compute_score([(r["query"], r["passage"]) for r in records])
    assert largest_difference(scores, expected) <= 1e-5
    assert (result.complete, result.summary["rows"], result.summary["shards"]) == (True, 5, 2)
    assert result.summary["job"]["settings"] == settings | {
        "adapter": None,
        "query_field": "query",
        "passage_field": "passage",
        "max_line_bytes": 8 << 20,
        "max_text_chars": 1_000_000,
        "output": ".jsonl",
    }


def test_sigmoids_of_large_logits_stay_apart(tmp_path, pairs, reranker, monkeypatch):
    bert = reranker("encoder-bert", {"max_length": 64, "normalize": True})
    params = {**bert.params, "head.out_proj.bias": bert.params["head.out_proj.bias"] + 20}
    model = FlaxReranker.from_spec(bert.spec, params, bert.mesh)
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: model)
    score_files(str(BERT), JobOptions(input=pairs, output=tmp_path / "scores.jsonl"), normalize=True)
    scores = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(set(scores)) == 5
    assert min(scores) > 0.999999  # where float32 rounds them to a few values


def test_settings_are_kept_as_json_values(tmp_path, pairs, reranker, monkeypatch):
    loads = []
    bert = reranker("encoder-bert")
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: loads.append(kwargs) or bert)
    options = JobOptions(input=[str(pairs)], output=str(tmp_path / "folder"))
    settings = {
        "model_class": RerankerModelClass.ENCODER_ONLY_BASE,
        "cutoff_layers": (1, 2),
        "sharding_rules": ShardingRules(vocab=None),
        "cache_dir": "anywhere",
        "max_length": None,
    }
    kept = score_files(str(BERT), options, **settings).summary["job"]["settings"]
    assert loads == [settings]
    assert (kept["model_class"], kept["cutoff_layers"]) == ("encoder-only-base", [1, 2])
    assert kept["sharding_rules"]["vocab"] is None
    assert not {"cache_dir", "max_length"} & set(kept)
    assert score_files(str(BERT), options, **settings).complete  # a list in the manifest is the tuple given here
    assert len(loads) == 1
    with pytest.raises(ValueError, match=r"cutoff_layers is \[1, 2\] there and \[1, 3\] here"):
        score_files(str(BERT), options, **settings | {"cutoff_layers": (1, 3)})
    with pytest.raises(TypeError, match=r"prompt is <object .* must be values that JSON can hold"):
        score_files(str(BERT), options, prompt=object())


def test_a_setting_that_the_class_does_not_have_is_named(tmp_path, pairs):
    with pytest.raises(TypeError, match="compress_ratio"):
        score_files(str(BERT), JobOptions(input=pairs, output=tmp_path / "out"), compress_ratio=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run", "txt", "trec", "parquet", "scores"])
def test_a_name_without_a_suffix_is_that_of_a_folder(tmp_path, name):
    options = JobOptions(input="pairs.jsonl", output=tmp_path / name)
    assert output_of(options, ExitStack()) == (str(tmp_path / name), None)
    options = JobOptions(input="pairs.jsonl", output=tmp_path / f"{name}.txt")
    assert output_of(options, ExitStack()) == (str(tmp_path / f"{name}.txt.job"), str(tmp_path / f"{name}.txt"))


@pytest.mark.parametrize("role", ["run", "queries", "corpus"])
def test_no_text_of_a_run_may_be_the_output(tmp_path, role):
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("run", "queries", "corpus")}
    for path in paths.values():
        path.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(paths[role])
    options = JobOptions(**paths, output=tmp_path / "link.jsonl")
    with pytest.raises(ValueError, match=rf"input and output are the same file, .*{role}\.jsonl"):
        source_of(options, ExitStack())


def test_columns_that_json_lacks_are_refused_before_scoring(tmp_path):
    path = tmp_path / "pairs.parquet"
    columns = {"query": ["q"], "passage": ["p"], "when": pa.array([0], pa.timestamp("ms"))}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r'pairs\.parquet: the column "when" holds timestamp\[ms\], for which JSON'):
        score_files(str(BERT), JobOptions(input=path, output=tmp_path / "scores.jsonl"))
    assert list(tmp_path.iterdir()) == [path]


def test_limits_are_options_of_the_job(tmp_path, pairs):
    options = JobOptions(input=pairs, output=tmp_path / "scores.jsonl", max_line_bytes=7, max_text_chars=9)
    assert source_of(options, ExitStack()).limits == Limits(7, 9)
    with pytest.raises(ValueError, match="max_text_chars is 0; it must be at least 1"):
        JobOptions(input=pairs, output=tmp_path / "scores.jsonl", max_text_chars=0)


@pytest.mark.parametrize("name", ["out.json", "s.csv"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: outputs are \.jsonl"):
        output_of(JobOptions(input="pairs.jsonl", output=tmp_path / name), ExitStack())
    folder = str(tmp_path / name)
    assert output_of(JobOptions(input="pairs.jsonl", output=f"{folder}/"), ExitStack()) == (folder, None)


def test_options_say_which_engine(monkeypatch):
    def engine(**options):
        return engine_of(JobOptions(input="in.jsonl", output="out", show_progress_bar=False, **options), {})

    assert engine() == LocalEngine()
    assert engine(num_shards=3, shard_index=0) == LocalEngine(0, 3)
    ray = RayEngine("auto", 2, {"CPU": 1.0})
    assert engine(engine="ray", ray_address="auto", ray_actors=2, ray_resources={"CPU": 1.0}) == ray
    assert engine(engine="ray", ray_address="auto", ray_actors=2, ray_resources=[("CPU", 1.0)]) == ray


@pytest.mark.parametrize("options", [{}, {"distributed": True}])
def test_in_a_cluster_each_process_takes_its_share(monkeypatch, options):
    joined = []
    monkeypatch.setattr("flax_rerank.distributed.in_a_cluster", lambda: True)
    monkeypatch.setattr("flax_rerank.distributed.initialize", lambda *place: joined.append(place))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    options = JobOptions(input="in.jsonl", output="out", show_progress_bar=False, **options)
    assert engine_of(options, {}) == LocalEngine(0, 4)
    assert joined == [(None, None, None)]


def test_after_warmup_nothing_else_is_compiled(tmp_path, reranker, monkeypatch):
    """Not even for compressed pairs in later shards that are longer, or have longer queries."""
    settings = {"max_length": 64, "compress_layers": [2, 4], "compress_ratio": 4}
    model = reranker("lightweight-gemma2", settings)
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: model)
    words = [(1, 3), (2, 30), (2, 5), (1, 40), (40, 2), (9, 9), (12, 90), (1, 1), (25, 25), (3, 60), (60, 5), (5, 5)]
    lines = [json.dumps({"query": "panda " * query, "passage": "bear " * passage}) for query, passage in words]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    options = JobOptions(input=tmp_path / "pairs.jsonl", output=tmp_path / "folder", shard_rows=2, warmup=True)
    shapes = score_files(str(CASES / "lightweight-gemma2"), options, **settings).summary["shapes"]
    table = json.loads((tmp_path / "folder" / "job.json").read_text())["table"]
    assert len(shapes) > 1
    assert all(shape in table for shape in shapes)
    assert len(model._scorer._programs) == len(table)
