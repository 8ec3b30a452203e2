"""Whether this process is one of several: JAX's own answer, on every platform."""

import pytest
from jax._src.clusters import cloud_tpu_cluster

from flax_rerank.distributed import in_a_cluster, initialize

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),  # it says nothing on a machine that is no TPU VM
    ],
)
def test_jax_is_asked(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_a_cluster() is expected


@pytest.mark.parametrize(("workers", "expected"), [("a:0:10.0.0.1,b:1:10.0.0.2", True), ("a:0:10.0.0.1", False)])
def test_a_slice_on_gce_is_found_by_its_metadata(monkeypatch, workers, expected):
    metadata = {"agent-worker-number": "0", "worker-network-endpoints": workers, "tpu-env": ""}
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda name: (metadata[name], 200))
    assert in_a_cluster() is expected


def test_the_place_of_a_process_is_given_whole():
    with pytest.raises(ValueError, match="give all of them or none"):
        initialize("127.0.0.1:1234", 2)
