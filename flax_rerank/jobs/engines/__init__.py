"""Engines: what runs the shards of a job."""

import sys
from collections.abc import Mapping
from typing import Any

import jax

from flax_rerank import distributed
from flax_rerank.jobs.engines.local import LocalEngine
from flax_rerank.jobs.engines.ray import RayEngine
from flax_rerank.jobs.options import JobOptions
from flax_rerank.sharding import make_mesh, spans_processes

__all__ = ["LocalEngine", "RayEngine", "engine_of"]


def engine_of(options: JobOptions, settings: Mapping[str, Any]) -> LocalEngine | RayEngine:
    """The engine. Joins the other processes, if JAX is to find them.

    The settings of the reranker, `devices` and `mesh`, say whether the model is over several processes. Raises
    ValueError if JAX finds no cluster where there should be one; or as `make_mesh`.
    """
    show = sys.stderr.isatty() if options.show_progress_bar is None else options.show_progress_bar
    if options.engine == "ray":
        return RayEngine(options.ray_address, options.ray_actors, dict(options.ray_resources), show)
    if options.num_shards is not None and options.shard_index is not None:
        return LocalEngine(options.shard_index, options.num_shards, show_progress_bar=show)
    place = options.coordinator, options.num_processes, options.process_id
    if options.distributed or any(value is not None for value in place) or distributed.in_a_cluster():
        distributed.initialize(*place)
    if jax.process_count() == 1:
        return LocalEngine(show_progress_bar=show)
    mesh = make_mesh(settings.get("devices"), settings.get("mesh"))
    return LocalEngine(jax.process_index(), jax.process_count(), spans_processes(mesh), show_progress_bar=show)
