"""Several processes: how each finds the others, and how all end when one fails."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 7 * 24 * 3600
HEARTBEAT_SECONDS = 30  # a process that is silent for longer is dead, and JAX ends the others
POLL_SECONDS = 1.0
FAILED = "flax_rerank/failed/"


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes of a job, before any device is used. A second call does nothing.

    On TPU VMs, and under Slurm, Open MPI and Kubernetes, JAX finds the arguments. Elsewhere all three are needed:
    "host:port" of process 0, the number of processes, and which of them this is, from 0.

    Raises:
        ValueError: one or two of the three are given, or none where JAX finds no cluster.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError("coordinator, num_processes and process_id belong together: give all of them or none")
    if jax.distributed.is_initialized():
        return
    # A process that has finished waits for the others; by default, JAX would abort them after five minutes.
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def in_a_cluster() -> bool:
    """Whether this process is one of several, by the detection of `jax.distributed.initialize()`: on TPU VMs (GCE and
    GKE), and under Slurm, Open MPI or Kubernetes."""
    # JAX has no public function for this that does not join. This private one exists in jax 0.10 to 0.12.
    from jax._src.clusters import ClusterEnv

    # JAX looks up only what is None here: the number of processes.
    _, count, _, _ = ClusterEnv.auto_detect_unset_distributed_params("", None, 0, [], None, None)
    return count is not None and count > 1


@contextmanager
def ending_together() -> Iterator[None]:
    """While this is entered, an exception in one process ends all processes, within seconds and with its reason.

    Otherwise the others would wait in a collective forever. All processes of `jax.distributed` must enter it. The one
    that fails raises its exception; each other one logs the reason and exits with code 1. JAX finds a killed process
    or a lost machine after `HEARTBEAT_SECONDS`.

    Raises:
        ValueError: `jax.distributed` is not initialised.
    """
    # The processes share a key-value store, whose client is private in jax 0.10 to 0.12.
    from jax._src.distributed import global_state

    store = global_state.client
    if store is None:
        raise ValueError("a model over several processes needs jax.distributed: call jax.distributed.initialize()")
    left = threading.Event()

    def watch() -> None:
        while not left.wait(POLL_SECONDS):
            for process, reason in store.key_value_dir_get(FAILED):
                if left.is_set():
                    return
                logger.error("process %s failed: %s", process.removeprefix(FAILED), reason)
                # The one that failed waits at its end for the others; if it does not end, this process ends anyway.
                end = threading.Timer(HEARTBEAT_SECONDS, os._exit, [1])
                end.daemon = True
                end.start()
                jax.distributed.shutdown()
                os._exit(1)  # the main thread cannot be interrupted: it is in a collective

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        left.set()
        watcher.join()
        store.key_value_set(f"{FAILED}{jax.process_index()}", f"{type(error).__name__}: {error}")
        raise
    finally:
        left.set()
        watcher.join()
