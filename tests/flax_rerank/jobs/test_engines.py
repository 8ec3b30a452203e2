"""Many processes score what one process scores: by jax.distributed, with the model over two of them, and on Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fake_reranker
import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank.cli import main
from flax_rerank.jobs.engines.ray import RayEngine
from flax_rerank.jobs.run import run_job

SCRIPT = CASES.parents[1] / "scripts" / "score.py"
WORKER = Path(__file__).with_name("two_processes.py")
CASE = load_case("encoder-bert")
PAIRS = CASE.pairs
SCORED = [i for i, (_, passage) in enumerate(PAIRS) if passage]  # and one is rejected
SHARD_ROWS, SHARDS = 2, 6
MAX_LENGTH = 64  # so that little is compiled
LOGITS, SIGMOIDS = 0, 1  # runs of the case: pairs in full, and cut to `MAX_LENGTH`

# Ray Data's own context sets what it calls deprecated.
ray_warns = pytest.mark.filterwarnings("ignore:.use_\\w+. is deprecated:DeprecationWarning")


def write_pairs(path, times=1):
    lines = [json.dumps({"id": i, "query": query, "passage": passage}) for i, (query, passage) in enumerate(PAIRS)]
    path.write_text("".join(f"{line}\n" for line in lines) * times)


def options(folder, output):
    model, source = CASES / "encoder-bert", folder / "pairs.jsonl"
    job = ["--shard-rows", str(SHARD_ROWS), "--no-progress", "--max-length", str(MAX_LENGTH)]
    return ["--model", str(model), "--input", str(source), "--output", str(folder / output), *job]


def start(script, *arguments):
    # Each has one device, whatever this process has.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with what one process wrote ("alone"), two ("shared"), and two that share the model ("spanned").

    In the end, the two share the model for a job that fails in the first one: `messages.json` has what each said.
    """
    folder = tmp_path_factory.mktemp("engines")
    write_pairs(folder / "pairs.jsonl")
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    sound = [lines[i] for i in SCORED]
    (folder / "pairs1.jsonl").write_text("\n".join(sound))
    (folder / "pairs0.jsonl").write_text("\n".join([*sound[:4], "no JSON", *sound[5:]]))
    job = {"shard_rows": SHARD_ROWS, "input": str(folder / "pairs.jsonl")}
    settings = {"max_length": MAX_LENGTH}
    over_both = settings | {"mesh": "data=1,model=2"}
    failing = {"input": str(folder / "pairs{process}.jsonl"), "strict": True}
    jobs = [
        (job | {"output": str(folder / "shared")}, settings),
        (job | {"output": str(folder / "spanned.jsonl")}, over_both),
        (job | {"output": str(folder / "spanned.jsonl")}, over_both),  # it is complete already, in both
        (job | failing | {"output": str(folder / "failed.jsonl")}, over_both),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start(WORKER, coordinator, str(index), str(CASES / "encoder-bert"), json.dumps(jobs)) for index in range(2)
    ]
    try:
        assert main(["score", *options(folder, "alone"), "--devices", "cpu:0"]) == 0
        messages = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [1, 1], messages
    (folder / "messages.json").write_text(json.dumps(messages))
    return folder


def bytes_of(job):
    """The parts and rejects of a job, by name."""
    return {
        str(path.relative_to(job)): path.read_bytes()
        for kind in ("parts", "rejects")
        for path in job.glob(f"{kind}/*")
    }


def records_of(*paths):
    return [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]


def rows_of(job):
    return records_of(*sorted(job.glob("parts/*")))


def test_two_processes_write_what_one_writes(outputs):
    alone, shared = bytes_of(outputs / "alone"), bytes_of(outputs / "shared")
    assert len(alone) == SHARDS + 1  # and the rejects of one of them
    assert shared == alone
    assert [row["id"] for row in rows_of(outputs / "shared")] == SCORED
    # Each process puts what it took to load into the first shard that it scores.
    markers = [json.loads(path.read_text()) for path in sorted((outputs / "shared" / "done").iterdir())]
    assert [marker["shard"] for marker in markers if marker["seconds"]["load"] > 0] == [0, 1]
    summary = json.loads((outputs / "shared" / "summary.json").read_text())
    assert (summary["rows"], summary["rejects"], summary["devices"]) == (len(SCORED), 1, ["1 x cpu"])


def test_a_model_over_two_processes_scores_the_same(outputs):
    rows, expected = records_of(outputs / "spanned.jsonl"), rows_of(outputs / "alone")
    whole = [i for i in SCORED if len(CASE.runs[LOGITS]["input_ids"][i]) <= MAX_LENGTH]
    for side in (rows, expected):
        scores = {row["id"]: row.pop("score") for row in side}
        sigmoids = 1 / (1 + np.exp(-np.array(list(scores.values()))))
        assert CASE.error(LOGITS, [scores[i] for i in whole], whole) <= CASE.allowed_error(LOGITS)
        assert CASE.error(SIGMOIDS, sigmoids, SCORED) <= CASE.allowed_error(SIGMOIDS)
    assert rows == expected
    summary = json.loads((outputs / "spanned.jsonl.summary.json").read_text())
    assert (summary["rows"], summary["rejects"], summary["devices"]) == (len(SCORED), 1, ["2 x cpu"])
    (rejected,) = (outputs / "alone" / "rejects").iterdir()
    assert (outputs / "spanned.jsonl.rejects.jsonl").read_bytes() == rejected.read_bytes()


def test_all_processes_of_a_mesh_end_with_the_reason_of_the_one_that_failed(outputs):
    failed, other = json.loads((outputs / "messages.json").read_text())
    reason = f"ValueError: {outputs}/pairs0.jsonl:5: not JSON"
    assert reason in failed
    assert f"flax-rerank: process 0 failed: {reason}" in other
    assert not (outputs / "failed.jsonl").exists()


def test_a_process_that_is_killed_or_told_to_stop_can_be_started_again(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", times=30)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = len(list(tmp_path.glob("stopped/done/*")))
        process = start(SCRIPT, *options(tmp_path, "stopped"))
        try:
            while process.poll() is None and len(list(tmp_path.glob("stopped/done/*"))) < before + 3:
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=60) == code
        finally:
            process.kill()
            process.communicate()
    assert not (tmp_path / "stopped" / "summary.json").exists()
    for output in ("stopped", "undisturbed"):
        assert main(["score", *options(tmp_path, output), "--devices", "cpu:0"]) == 0
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "undisturbed")
    assert len(rows_of(tmp_path / "stopped")) == 30 * len(SCORED)


@pytest.fixture(scope="module")
def ray_cluster():
    """Ray on this machine, for all tests of this file."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("JAX_PLATFORMS", "cpu")
        warnings.filterwarnings("ignore", "os.fork.. was called", RuntimeWarning)  # to start Ray's own programs
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="warning",
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


@ray_warns
def test_ray_writes_what_one_process_writes(outputs, ray_cluster):
    assert main(["score", *options(outputs, "on-ray"), "--engine", "ray"]) == 0
    assert bytes_of(outputs / "on-ray") == bytes_of(outputs / "alone")
    summary = json.loads((outputs / "on-ray" / "summary.json").read_text())
    assert (summary["rows"], summary["rejects"], summary["shards"]) == (len(SCORED), 1, SHARDS)


@ray_warns
def test_a_ray_worker_that_is_killed_loses_no_row(ray_cluster, make_job, tmp_path):
    from ray import cloudpickle

    died = tmp_path / "died"

    def dies_once(pairs):
        if ("q", "e") in pairs and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    fake = make_job([*"abcdefghij", "fault"], on_run=dies_once)
    cloudpickle.register_pickle_by_value(fake_reranker)
    cloudpickle.register_pickle_by_value(sys.modules[fake.job.load.__module__])
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    result = run_job(fake.job, RayEngine())
    assert died.exists()
    assert [row["passage"] for row in fake.rows()] == list("abcdefghij")
    assert (result.summary["shards"], result.summary["rows"], result.summary["rejects"]) == (4, 10, 1)


@ray_warns
def test_what_goes_wrong_in_a_ray_worker_is_raised(ray_cluster, make_job):
    fake = make_job(["a", "b", "c", "d", "bad"]).but(strict=True)
    with pytest.raises(ValueError, match=r"^\S*pairs\.jsonl:5: not JSON"):
        run_job(fake.job, RayEngine())
    assert not Path(fake.job.file).exists()
