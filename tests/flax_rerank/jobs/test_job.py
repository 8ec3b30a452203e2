"""Jobs: what they write, what they refuse, and that they can be stopped anywhere."""

import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import pytest

from flax_rerank.batching import Shape
from flax_rerank.jobs import files, manifest, weights
from flax_rerank.jobs.engines.local import LocalEngine
from flax_rerank.jobs.formats import Format
from flax_rerank.jobs.job import read_json
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.run import run_job
from flax_rerank.jobs.sources import JsonlSource
from flax_rerank.sharding import make_mesh

PASSAGES = [f"passage {'x' * n}" for n in range(8)]


def run(fake, engine=LocalEngine(), **options):  # noqa: B008
    return run_job(fake.job, engine, **options)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_a_job_writes_every_row_once_in_order(make_job):
    fake = make_job(PASSAGES)
    result = run(fake)
    assert result.complete
    assert [row["passage"] for row in fake.rows()] == PASSAGES
    assert [row["score"] for row in fake.rows()] == pytest.approx([1 + len(p) / 7 for p in PASSAGES])
    folder = Path(fake.job.file).parent
    assert files_of(folder) == ["scores.jsonl", "scores.jsonl.summary.json"]
    assert json.loads(Path(fake.job.summary).read_text()) == result.summary
    counts = {name: result.summary[name] for name in ("shards", "rows", "rejects", "tokens", "steps", "truncated")}
    assert counts == {"shards": 3, "rows": 8, "rejects": 0, "tokens": 40, "steps": 6, "truncated": 8}
    assert result.summary["padding_share"] == pytest.approx(1 - 40 / 384)
    assert result.summary["shapes"] == [[8, 16, 0, 0, 0]]
    assert result.summary["devices"] == ["1 x cpu"]
    assert result.summary["seconds"]["warmup"] == 0
    assert set(result.summary["versions"]) == {"flax-rerank", "jax", "jaxlib", "flax"}


def test_warmup_compiles_the_whole_table_once(make_job):
    rerankers = []
    fake = make_job(PASSAGES, name="folder").but(warmup=True)
    load = fake.job.load
    result = run(fake.but(load=lambda: rerankers.append(load()) or rerankers[0]))
    assert result.summary["seconds"]["warmup"] == 1.5
    assert [list(map(list, table)) for table in rerankers[0].warm] == [read_json(fake.job.manifest)["table"]]


def test_rows_that_cannot_be_scored_go_to_the_rejects(make_job):
    fake = make_job(["a", "nan", "bad line", "fault", "b", "nan fault", "c", "d", "bad too"])
    result = run(fake)
    assert [row["passage"] for row in fake.rows()] == ["a", "b", "c", "d"]
    rejects = [json.loads(line) for line in Path(fake.job.all_rejects).read_text().splitlines()]
    (source,) = fake.job.source.files
    assert [reject["file"] for reject in rejects] == [source] * 5
    assert [reject["line"] for reject in rejects] == [2, 3, 4, 6, 9]
    reasons = [reject["reason"].partition(":")[0] for reject in rejects]
    assert reasons == ["its score is not finite", "not JSON", "it is at fault", "it is at fault", "not JSON"]
    assert (result.summary["rows"], result.summary["rejects"], result.summary["truncated"]) == (4, 5, 4)


@pytest.mark.parametrize(
    ("bad", "reason"), [("bad", "not JSON"), ("fault", "it is at fault"), ("nan", "its score is not finite")]
)
def test_a_strict_job_stops_at_the_first_such_row(make_job, bad, reason):
    fake = make_job(["a", "b", "c", "d", bad, "nan"]).but(strict=True)
    with pytest.raises(ValueError, match=f"pairs.jsonl:5: {reason}"):
        run(fake)
    assert not Path(fake.job.file).exists()
    assert list(fake.job.finished()) == [0]


def test_no_finite_score_at_all_is_no_fault_of_the_rows(make_job):
    with pytest.raises(FloatingPointError, match=r"pairs\.jsonl: no score of the rows from line 4 on is finite"):
        run(make_job(["a", "nan", "b", "nan", "nan", "fault"]))


def test_a_shard_without_rows_is_finished_too(make_job):
    fake = make_job(["fault", "fault", "fault", "a", "bad", "bad", "bad", "bad"])
    assert run(fake).summary["rejects"] == 7
    assert [row["passage"] for row in fake.rows()] == ["a"]


def test_all_shards_have_one_table_that_holds_the_longest_pairs(make_job):
    rerankers = []
    fake = make_job(["fault", "fault", "fault", *PASSAGES], name="folder")
    load = fake.job.load
    fake = fake.but(load=lambda: rerankers.append(load()) or rerankers[0])
    run(fake)
    table = (Shape(8, 16), Shape(4, 32), Shape(2, 64), Shape(1, 100))
    assert rerankers[0].tables == [table] * 4
    assert read_json(fake.job.manifest)["table"] == [list(shape) for shape in table]


def test_a_second_start_does_only_what_is_missing(make_job):
    scored = []
    fake = make_job(PASSAGES, name="folder", on_run=lambda pairs: scored.append(len(pairs)))
    run(fake)
    before = {name: (Path(fake.job.folder) / name).read_bytes() for name in files_of(fake.job.folder)}
    Path(fake.job.finished()[0]).unlink()
    Path(fake.job.part(2)).write_bytes(b"torn")
    scored.clear()
    assert run(fake).summary["rows"] == 8
    assert scored == [3, 2]
    after = {name: (Path(fake.job.folder) / name).read_bytes() for name in files_of(fake.job.folder)}
    assert list(after) == list(before)
    for name in before:
        if name.startswith("parts"):
            assert after[name] == before[name]
    assert run(fake.but(load=None)).complete  # nothing to load for


def test_a_finished_file_is_finished(make_job, caplog):
    fake = make_job(PASSAGES)
    first = run(fake)
    caplog.set_level("INFO", "flax_rerank")
    assert run(fake.but(load=None)) == first
    assert "scores.jsonl is complete already" in caplog.text
    with open(fake.job.file, "a", encoding="utf-8") as file:
        file.write("more")
    with pytest.raises(FileExistsError, match=r"scores\.jsonl exists\. Give another output"):
        run(fake)
    run(fake, overwrite=True)
    assert [row["passage"] for row in fake.rows()] == PASSAGES


def test_another_job_does_not_mix(make_job, tmp_path):
    fake = make_job(PASSAGES, name="folder")
    run(fake)
    with pytest.raises(
        ValueError, match=r"holds another job: max_length is 64 there and 128 here.*overwrite to start over"
    ):
        run(fake.but(settings={"max_length": 128}))
    with pytest.raises(ValueError, match="shards is 3 there and 2 here; shard_rows is 3 there and 5 here"):
        run(fake.but(shard_rows=5))
    (source,) = fake.job.source.files
    with pytest.raises(ValueError, match=rf"holds another job: input file {source} was changed\. Give"):
        run(make_job([*PASSAGES[:-1], "another"], name="folder"))
    written = read_json(fake.job.manifest)
    Path(fake.job.manifest).write_text(json.dumps(written | {"format_version": 2, "input": "0", "weights": "1"}))
    with pytest.raises(ValueError, match="holds another job: format_version is 2 there and 3 here"):
        run(fake)
    Path(fake.job.manifest).write_text(json.dumps({"format": "flax-rerank job", "format_version": 3}))
    with pytest.raises(ValueError, match="it is damaged: it has no flax_rerank, input, model, settings"):
        run(fake)
    Path(fake.job.manifest).write_text(json.dumps(written))
    assert run(fake.but(settings={"max_length": 128}), overwrite=True).complete
    assert read_json(fake.job.manifest)["settings"] == {"max_length": 128}


def weights_of(fake, size=9 << 20):
    """A file of weights of which no part that matters is at a fixed place."""
    path = Path(fake.job.model) / "model.safetensors"
    path.write_bytes(bytes(size))
    return path


@pytest.mark.parametrize("name", ["folder", "scores.jsonl"])
def test_other_weights_are_refused_by_the_name_of_their_file(make_job, name):
    fake = make_job(PASSAGES, name=name)
    path = weights_of(fake)
    run(fake)
    assert run(fake.but(load=None)).complete
    os.utime(path, (1, 1))
    assert run(fake.but(load=None)).complete  # the same bytes at another time
    with path.open("r+b") as file:
        file.seek(5_000_017)
        file.write(b"x")
    with pytest.raises(
        (ValueError, FileExistsError), match=r"job: model\.safetensors was changed\. Give another output"
    ):
        run(fake)
    path.write_bytes(b"x")
    with pytest.raises(
        (ValueError, FileExistsError), match=r"model\.safetensors was changed \(size 1 instead of 9,437,184\)"
    ):
        run(fake)
    path.unlink()
    (Path(fake.job.model) / "model-1.safetensors").write_bytes(b"")
    with pytest.raises((ValueError, FileExistsError), match=r"safetensors is new; model\.safetensors is missing"):
        run(fake)


def test_the_weights_are_hashed_beside_the_first_shard_and_before_it_is_written(make_job, monkeypatch):
    order, scored = [], threading.Event()

    def hashes(job):
        assert scored.wait(60)
        assert list(Path(job.folder).iterdir()) == []
        order.append("hashed")
        return weights.record_weights(job)

    monkeypatch.setattr(manifest, "record_weights", hashes)
    fake = make_job(PASSAGES, name="folder", on_run=lambda pairs: (order.append("scored"), scored.set()))
    Path(fake.job.folder).mkdir()
    assert run(fake).complete
    assert order == ["scored", "hashed", "scored", "scored"]


def test_of_two_processes_with_other_weights_the_second_is_refused(make_job):
    fake = make_job(PASSAGES, name="folder")
    path, shards = weights_of(fake, 10), fake.job.source.shards(3)
    description = manifest.describe(fake.job, shards)
    first, second = (manifest.Manifest(fake.job, description, shards, fake.job.load()) for _ in range(2))
    first.write()
    path.write_bytes(bytes(11))
    with pytest.raises(ValueError, match=r"model\.safetensors was changed \(size 11 instead of 10\)"):
        second.write()


def test_a_flax_checkpoint_is_told_by_the_hashes_of_its_manifest(make_job):
    fake = make_job(PASSAGES, name="folder")
    model = Path(fake.job.model)
    (model / "params").mkdir()
    (model / "params" / "array").write_bytes(b"a")
    (model / "manifest.json").write_text(json.dumps({"files": {"params/array": "1", "config.json": "2"}}))
    recorded = weights.record_weights(fake.job)
    assert sorted(recorded) == ["config.json", "params"]
    os.utime(model / "params" / "array", (1, 1))
    assert weights.changed_weights(fake.job, recorded) == []
    (model / "manifest.json").write_text(json.dumps({"files": {"params/array": "3", "config.json": "2"}}))
    assert weights.changed_weights(fake.job, recorded) == ["params was changed"]
    (model / "manifest.json").unlink()
    by_bytes = weights.record_weights(fake.job)
    (model / "params" / "array").write_bytes(b"b")
    os.utime(model / "params" / "array", (2, 2))
    assert weights.changed_weights(fake.job, by_bytes) == ["params was changed"]


def test_a_row_that_does_not_fit_is_named_with_its_file(make_job):
    fake = make_job(PASSAGES, name="folder")
    (source,) = fake.job.source.files
    lines = [json.dumps({"query": "q", "passage": "p", "n": n}) for n in (1, "one")]
    Path(source).write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf'^{source}: row 2: the field "n" does not fit'):
        run(fake.but(format=Format(".parquet")))


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [("dtype", "bfloat16", "float32"), ("platform", "tpu", "cpu"), ("mesh", "data=4,model=2", "data=1,model=1")],
)
def test_another_reranker_does_not_mix(make_job, name, there, here):
    fake = make_job(PASSAGES, name="folder")
    run(fake)
    Path(fake.job.finished()[0]).unlink()
    written = read_json(fake.job.manifest)
    assert written[name] == here
    Path(fake.job.manifest).write_text(json.dumps(written | {name: there}))
    with pytest.raises(ValueError, match=f'{name} is "{there}" there and "{here}" here'):
        run(fake)


def test_a_job_does_not_go_on_with_another_mesh(make_job):
    fake = make_job(PASSAGES, name="folder")
    run(fake)
    before = files_of(fake.job.folder)
    Path(fake.job.finished()[1]).unlink()

    def load():
        reranker = fake.job.load()
        reranker.mesh = make_mesh(jax.devices()[:2])
        return reranker

    with pytest.raises(ValueError, match='mesh is "data=1,model=1" there and "data=2,model=1" here'):
        run(fake.but(load=load))
    assert run(fake).complete
    assert files_of(fake.job.folder) == before


def test_a_folder_of_something_else_is_left_alone(make_job, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"is not the folder of a job: it holds thesis\.tex"):
            run(make_job(PASSAGES, name="folder"), overwrite=overwrite)
    assert files_of(tmp_path / "folder") == ["thesis.tex"]


@pytest.mark.parametrize("foreign", ["job.json", "parts/thesis.tex"])
def test_overwrite_removes_only_what_jobs_wrote(make_job, foreign):
    fake = make_job(PASSAGES, name="folder")
    run(fake)
    (Path(fake.job.folder) / foreign).write_text('{"precious": 1}')
    before = files_of(fake.job.folder)
    with pytest.raises(ValueError, match=rf"{foreign}.* job"):
        run(fake, overwrite=True)
    assert files_of(fake.job.folder) == before


@pytest.mark.parametrize("suffix", ["summary.json", "rejects.jsonl"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_beside_the_output_that_no_job_wrote_stay(make_job, suffix, overwrite):
    fake = make_job(PASSAGES)
    beside = Path(f"{fake.job.file}.{suffix}")
    beside.parent.mkdir()
    beside.write_text('{"precious": 1}\n')
    with pytest.raises(FileExistsError, match=rf"{suffix} was not written by a job"):
        run(fake, overwrite=overwrite)
    assert files_of(beside.parent) == [beside.name]
    assert beside.read_text() == '{"precious": 1}\n'


def test_one_process_at_a_time_writes_a_file(make_job):
    def second(pairs):
        with pytest.raises(BlockingIOError, match=rf"scores\.jsonl is being written by process {os.getpid()} on "):
            run(fake)

    fake = make_job(PASSAGES, on_run=second)
    assert run(fake).complete
    assert files_of(Path(fake.job.file).parent) == ["scores.jsonl", "scores.jsonl.summary.json"]


def test_processes_share_a_folder(make_job):
    alone = make_job(PASSAGES, name="alone", shard_rows=2)
    run(alone)
    fake = make_job(PASSAGES, name="shared", shard_rows=2)
    results = [run(fake, LocalEngine(index, 3)) for index in (1, 0, 2)]
    assert [result.complete for result in results] == [False, False, True]
    assert [result.summary["rows"] for result in results] == [2, 4, 8]
    for shard in range(4):
        assert Path(fake.job.part(shard)).read_bytes() == Path(alone.job.part(shard)).read_bytes()
    with pytest.raises(ValueError, match="3 processes cannot start over together"):
        run(fake, LocalEngine(0, 3), overwrite=True)
    with pytest.raises(ValueError, match="2 processes cannot write one file"):
        run(make_job(PASSAGES), LocalEngine(0, 2))


def test_of_many_processes_one_makes_the_manifest(tmp_path):
    path, made = str(tmp_path / "job.json"), []
    threads = [
        threading.Thread(target=lambda n=n: made.append((files.create(path, b'{"n": %d}' % n), n))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((_, winner),) = [(did, n) for did, n in made if did]
    assert read_json(path) == {"n": winner}
    assert files_of(tmp_path) == ["job.json"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_may_have_no_hard_links(make_job, monkeypatch, number):
    def no_link(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    fake = make_job(PASSAGES, name="folder")
    assert run(fake).complete
    assert files.create(fake.job.manifest, b"{}") is False
    assert read_json(fake.job.manifest)["settings"] == {"max_length": 64}
    assert [name for name in files_of(fake.job.folder) if "partial" in name] == []


def test_listings_alone_tell_what_is_finished(make_job, monkeypatch):
    opened, listed = [], []
    monkeypatch.setattr(files, "open_raw", lambda path, real=files.open_raw: (opened.append(path), real(path))[1])
    monkeypatch.setattr(files, "sizes", lambda path, real=files.sizes: (listed.append(path), real(path))[1])
    fake = make_job(PASSAGES, name="shared", shard_rows=1)
    assert not run(fake, LocalEngine(0, 2)).complete
    assert [path for path in opened if "/done/" in path] == []
    assert run(fake, LocalEngine(1, 2)).complete
    assert len([path for path in opened if "/done/" in path]) == len(PASSAGES)  # once, for the summary
    opened.clear()
    listed.clear()
    assert run(fake, LocalEngine(0, 2)).summary["rows"] == len(PASSAGES)
    assert [path for path in opened if "/done/" in path] == []
    assert len(listed) == 4  # parts and markers, at the start and at the end


def test_a_job_in_a_folder_behind_a_url(make_job):
    import fsspec

    with pytest.raises(FloatingPointError):
        run_job(make_job(["a", "b", "c", "nan"], name="folder").but(folder="memory://bucket/job").job, LocalEngine())
    fake = make_job(["a", "bad", "c", "d"], name="folder").but(folder="memory://bucket/job")
    run_job(fake.job, LocalEngine(), overwrite=True)
    names = {path.removeprefix("/bucket/job/") for path in fsspec.filesystem("memory").find("/bucket/job")}
    parts = {f"parts/part-0000{n}.jsonl": (120, 60)[n] for n in (0, 1)}
    done = {f"done/part-0000{n}.{size}.json" for n, size in enumerate(parts.values())}
    assert names == {"job.json", "summary.json", "rejects/part-00000.jsonl", *parts, *done}
    assert {name: fsspec.filesystem("memory").size(f"/bucket/job/{name}") for name in parts} == parts
    assert files.create(fake.job.manifest, b"{}") is False
    assert run_job(fake.but(load=None).job, LocalEngine()).summary["rows"] == 3


class Killed(BaseException):
    """What a killed process does next: nothing."""


CHANGES = ("replace", "link", "remove", "unlink", "rmdir")


def test_a_kill_before_any_change_of_the_disk_is_harmless(make_job, monkeypatch):
    passages = [*PASSAGES[:5], "bad"]
    undisturbed = make_job(passages, name="undisturbed/scores.jsonl")
    run(undisturbed)
    expected = [Path(path).read_bytes() for path in (undisturbed.job.file, undisturbed.job.all_rejects)]
    kills = 0
    while True:
        fake = make_job(passages, name=f"killed{kills}/scores.jsonl")
        left = [kills]

        def dies(name, left=left):
            change = getattr(os, name)

            def changed(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return change(*args, **kwargs)

            return changed

        with monkeypatch.context() as patched:
            for name in CHANGES:
                patched.setattr(os, name, dies(name))
            try:
                run(fake)
            except Killed:
                pass
            else:
                break
        run(fake)
        assert [Path(path).read_bytes() for path in (fake.job.file, fake.job.all_rejects)] == expected
        summary = f"{os.path.basename(fake.job.file)}.summary.json"
        names = [name for name in files_of(Path(fake.job.file).parent) if ".partial-" not in name]
        assert names == ["scores.jsonl", "scores.jsonl.rejects.jsonl", summary]
        kills += 1
    assert kills > 15


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_drops_the_shard_on_the_devices(make_job, number, code):
    scored = []

    def stopped(pairs):
        scored.append(len(pairs))
        if len(scored) == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

    before = signal.getsignal(number)
    fake = make_job(PASSAGES, on_run=stopped)
    with pytest.raises(SystemExit) as stop:
        run(fake)
    assert stop.value.code == code
    assert signal.getsignal(number) is before
    assert list(fake.job.finished()) == [0]
    assert not Path(fake.job.file).exists()
    run(fake)
    assert scored == [3, 3, 3, 2]
    assert [row["passage"] for row in fake.rows()] == PASSAGES


def test_a_signal_that_is_swallowed_is_obeyed_at_the_next_shard(make_job):
    def swallows(pairs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            return

    fake = make_job(PASSAGES, on_run=swallows)
    with pytest.raises(SystemExit):
        run(fake)
    assert list(fake.job.finished()) == [0]


def test_a_signal_in_a_finaliser_is_obeyed_without_a_traceback(make_job, monkeypatch):
    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    with pytest.raises(SystemExit) as stop:
        run(make_job(PASSAGES, on_run=lambda pairs: Finalised() and None))
    assert stop.value.code == 143
    assert shown == []
    assert sys.unraisablehook == shown.append


@pytest.mark.parametrize("place", ["read", "write"])
def test_what_goes_wrong_in_a_thread_is_raised(make_job, monkeypatch, place):
    def breaks(*args):
        raise RuntimeError(f"cannot {place}")

    fake = make_job(PASSAGES)
    monkeypatch.setattr(type(fake.job.source if place == "read" else fake.job.format), place, breaks)
    with pytest.raises(RuntimeError, match=f"cannot {place}"):
        run(fake)


def test_three_shards_are_in_memory_at_a_time(make_job, monkeypatch):
    fake = make_job([str(n) for n in range(60)], name="folder", shard_rows=2)
    ahead = []
    read = JsonlSource.read

    def counted(source, shard: Shard):
        ahead.append(shard.index - len(fake.job.finished()))
        return read(source, shard)

    monkeypatch.setattr(JsonlSource, "read", counted)
    run(fake)
    assert len(ahead) == 31
    assert 1 <= max(ahead) <= 2


def test_an_input_of_which_no_row_can_be_scored_is_refused(make_job):
    fake = make_job(["fault", "bad line", "fault again", "bad too"])
    (source,) = fake.job.source.files
    with pytest.raises(ValueError, match=rf"^no row of the input can be scored; {source}:1: it is at fault$"):
        run(fake)
    assert not Path(fake.job.manifest).exists()


def test_a_finished_job_is_finished_in_lock_step_too(make_job):
    fake = make_job(PASSAGES, name="folder")
    first = run(fake, LocalEngine(lock_step=True))
    assert run(fake, LocalEngine(lock_step=True)) == first
    assert first.summary["rows"] == len(PASSAGES)
