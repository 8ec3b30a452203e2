"""Score files from Python: a job that can be stopped at any time and started again."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from typing import Any

import jax

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.compile_cache import use_compile_cache
from flax_rerank.distributed import ending_together
from flax_rerank.jobs import files
from flax_rerank.jobs.engines import LocalEngine, RayEngine, engine_of
from flax_rerank.jobs.inputs import source_of
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.outputs import copy_to_standard_output, format_at, place_of
from flax_rerank.jobs.run import OneFile, Result, run_job
from flax_rerank.rerankers import AbsReranker

logger = logging.getLogger(__name__)

# Settings that the manifest does not have: where things run or are kept, and what it says in its own way.
NOT_IN_MANIFEST = (
    *("cache_dir", "devices", "show_progress_bar"),
    *("dtype", "use_fp16", "use_bf16", "mesh", "peft_path"),
)


def score_files(model: str, options: JobOptions, **settings: Any) -> Result:
    """Score pairs from files, or rerank a TREC run, in shards. A second call goes on where the first was stopped.

    Args:
        model: a folder (PyTorch or Flax), or a name on the Hugging Face hub.
        options: the input, the output, and how the job runs.
        settings: arguments of `FlaxAutoReranker.from_finetuned`.

    Returns:
        Whether all shards are finished, and a summary: rows, rejects, tokens, seconds, versions. For one file, it is
        also in `<output>.summary.json`; for a folder, in `<output>/summary.json`.

    Raises:
        ValueError: an input, an output or a setting that is wrong, by name; another job's output; in a strict job, a
            row that cannot be scored, by file and line.
        TypeError: a setting that the reranker's class does not have, or whose value JSON cannot hold.
        FileExistsError: the output exists, and is not that of this job.
        FloatingPointError: no score of a shard is finite.
        SystemExit: SIGTERM (143) or SIGINT (130) came. Finished shards stay.
    """
    engine = engine_of(options, settings)
    try:
        return _run(model, options, settings, engine)
    except SystemExit as stop:
        logger.warning("stopped by a signal; start the job again to go on")
        if jax.distributed.is_initialized() and not engine.lock_step:
            os._exit(int(stop.code or 0))  # else it would wait for the other processes, which may have hours to go
        raise


@dataclass(frozen=True)
class Loader:
    """Makes the reranker, on this machine or on another one."""

    model: str
    settings: Mapping[str, Any]
    compile_cache: str | None

    def __call__(self) -> AbsReranker:
        if self.compile_cache is not None:
            use_compile_cache(self.compile_cache)
        return FlaxAutoReranker.from_finetuned(self.model, **self.settings)


def _run(model: str, options: JobOptions, settings: Mapping[str, Any], engine: LocalEngine | RayEngine) -> Result:
    model, adapter = _everywhere(model), settings.get("peft_path")
    if adapter is not None:
        adapter = _everywhere(adapter)
        settings = {**settings, "peft_path": adapter}
    with ExitStack() as stack:
        if engine.lock_step:
            stack.enter_context(ending_together())
        source = source_of(options, stack)
        place = place_of(options, stack)
        file = place if isinstance(place, OneFile) else None
        layers = settings.get("cutoff_layers")
        written_as = format_at(place, options, source, len(layers) if isinstance(layers, Sequence) else 1)
        job = Job(
            source=source,
            format=written_as,
            folder=place if isinstance(place, str) else files.absolute(place.folder),
            model=model,
            load=Loader(model, settings, options.compile_cache),
            settings={**_settings(options, settings), "output": written_as.suffix},
            adapter=adapter,
            cache_dir=settings.get("cache_dir"),
            shard_rows=options.shard_rows,
            strict=options.strict,
            warmup=options.warmup,
        )
        result = run_job(job, engine, file=file, overwrite=options.overwrite)
        if file is not None and options.output == STANDARD_STREAM:
            copy_to_standard_output(file)
        return result


def _everywhere(model: str) -> str:
    """A model's folder as every process finds it; a name on the hub as it is."""
    return files.absolute(model) if os.path.isdir(model) else str(model)


def _settings(options: JobOptions, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on beside input and weights, as JSON values."""
    given = {
        name: _as_json(name, value)
        for name, value in settings.items()
        if value is not None and name not in NOT_IN_MANIFEST
    }
    given["adapter"] = settings.get("peft_path")
    if options.run is None:
        return {**given, "query_field": options.query_field, "passage_field": options.passage_field}
    return {**given, "top_k": options.top_k, "tag": options.tag}


def _as_json(name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; the settings of a job must be values that JSON can hold") from error
