"""Score files from Python: a job that can be stopped at any time and started again."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from enum import Enum
from functools import partial
from typing import Any

import jax

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.distributed import ending_together
from flax_rerank.jobs import files
from flax_rerank.jobs.engines import engine_of
from flax_rerank.jobs.inputs_outputs import copy_to_standard_output, format_for, output_of, source_of
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.run import Result, run_job

logger = logging.getLogger(__name__)

# Settings that the manifest leaves out: they say where things run or are kept, or it has them in a form of its own.
NOT_IN_MANIFEST = (
    *("cache_dir", "compile_cache", "devices", "show_progress_bar"),
    *("dtype", "use_fp16", "use_bf16", "mesh", "peft_path"),
)


def score_files(model: str, options: JobOptions, **settings: Any) -> Result:
    """Score pairs from files, or rerank a TREC run, in shards. A second call continues where the first was stopped.

    Args:
        model: a folder (PyTorch or Flax), or a name on the Hugging Face hub.
        options: the input, the output, and how the job runs.
        settings: arguments of `FlaxAutoReranker.from_finetuned`.

    Returns:
        Whether all shards are finished, and a summary: rows, rejects, tokens, seconds, versions. It is also in
        `<output>.summary.json` for one file, and in `<output>/summary.json` for a folder.

    Raises:
        ValueError: an input, an output or a setting that is wrong, by name; the output of another job; in a strict
            job, a row that cannot be scored, by file and line.
        TypeError: a setting that the reranker's class does not have, or whose value JSON cannot hold.
        FileExistsError: the output exists, and is not that of this job.
        FloatingPointError: no score of a shard is finite.
        SystemExit: SIGTERM (143) or SIGINT (130) came. Finished shards stay. Under `jax.distributed` without a mesh
            that spans hosts, the process ends at once instead, with the same exit code.
    """
    engine = engine_of(options, settings)
    try:
        with ExitStack() as stack:
            if engine.lock_step:
                stack.enter_context(ending_together())
            job = job_of(model, options, settings, stack)
            result = run_job(job, engine, overwrite=options.overwrite)
            if options.output == STANDARD_STREAM:
                copy_to_standard_output(job)
            return result
    except SystemExit as stop:
        logger.warning("stopped by a signal; start the job again to continue it")
        if jax.distributed.is_initialized() and not engine.lock_step:
            os._exit(int(stop.code or 0))  # else it would wait for the other processes, which can have hours to go
        raise


def job_of(model: str, options: JobOptions, settings: Mapping[str, Any], stack: ExitStack) -> Job:
    """The job of these arguments of `score_files`. The stack keeps temporary files until it is left."""
    adapter = settings.get("peft_path")
    if adapter is not None:
        adapter = _anywhere(adapter)
        settings = {**settings, "peft_path": adapter}
    source = source_of(options, stack)
    folder, file = output_of(options, stack)
    layers = settings.get("cutoff_layers")
    output = format_for(file, options, source, len(layers) if isinstance(layers, Sequence) else 1)
    kept = {
        name: _as_json(name, value)
        for name, value in settings.items()
        if value is not None and name not in NOT_IN_MANIFEST
    }
    names = ("query_field", "passage_field") if options.run is None else ("top_k", "tag")
    given = {name: getattr(options, name) for name in (*names, "max_line_bytes", "max_text_chars")}
    return Job(
        source=source,
        format=output,
        folder=folder,
        file=file,
        model=_anywhere(model),
        load=partial(FlaxAutoReranker.from_finetuned, _anywhere(model), **settings),
        settings={**kept, "adapter": adapter, **given, "output": output.suffix},
        cache_dir=settings.get("cache_dir"),
        shard_rows=options.shard_rows,
        strict=options.strict,
        warmup=options.warmup,
    )


def _anywhere(model: str) -> str:
    """A model's folder by a path that is right in any process; a name on the hub unchanged."""
    return files.absolute(model) if os.path.isdir(model) else str(model)


def _as_json(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=_plain))
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; the settings of a job must be values that JSON can hold") from error


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else asdict(value)
