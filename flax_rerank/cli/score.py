"""Score pairs, or rerank a TREC run: a job that can be stopped at any time and started again."""

import argparse
import glob
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import jax

from flax_rerank import distributed
from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.cli.loading import add_model_class, add_settings
from flax_rerank.cli.loading import given_settings as given_arguments
from flax_rerank.compile_cache import use_compile_cache
from flax_rerank.jobs import files
from flax_rerank.jobs.engines.local import LocalEngine
from flax_rerank.jobs.engines.ray import RayEngine
from flax_rerank.jobs.formats import TrecFormat, format_of
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.rows import Format, Source
from flax_rerank.jobs.run import Engine, OneFile, run_job
from flax_rerank.jobs.sources import ParquetSource, TrecSource, beir_files, open_source
from flax_rerank.jobs.summary import in_words
from flax_rerank.rerankers import AbsReranker
from flax_rerank.sharding import ShardingRules, make_mesh, spans_processes

STANDARD_STREAM = "-"
# What may change between two starts of a job: where it runs, and what the manifest has in another way.
NO_SETTINGS = ("devices", "cache_dir", "dtype", "peft_path")
AXES = tuple(field.name for field in fields(ShardingRules))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank score`."""
    parser.add_argument("--model", required=True, help="a folder (PyTorch or Flax), or a name on the Hugging Face hub")
    add_model_class(parser)
    _add_input_arguments(parser.add_argument_group("input", "Pairs (--input), or a TREC run with its texts (--run)."))
    _add_output_arguments(parser.add_argument_group("output"))
    _add_job_arguments(parser.add_argument_group("job"))
    _add_machine_arguments(parser.add_argument_group("machines"))
    _add_reranker_arguments(
        parser.add_argument_group(
            "options of the reranker", "Defaults are those of its class.", argument_default=argparse.SUPPRESS
        )
    )


def run(args: argparse.Namespace) -> int:
    """Start the job or go on with it, and say what it took.

    Raises:
        ValueError: options that contradict each other; and as `run_job`, and, where the reranker is made,
            `load_reranker`.
        SystemExit: told to stop by a signal, with 143 or 130.
    """
    logging.basicConfig(format="flax-rerank: %(message)s")
    logging.getLogger("flax_rerank").setLevel(logging.INFO)
    with ExitStack() as stack:
        output = args.output
        if output == STANDARD_STREAM:
            kind = "trec" if args.trec_run is not None else "jsonl"
            name = f"scores.{args.format or kind}"
            output = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="flax-rerank-")), name)
        elif args.format and _format_of_name(output):
            raise ValueError(f"the name {output} says its format: --format is for a folder or for standard output")
        source = _source(args, stack)
        file = OneFile(output) if _format_of_name(output) else None
        _refuse_place(output, file)
        written_as = _format(args, source, output if file else args.format or "jsonl")
        job = Job(
            source=source,
            format=written_as,
            folder=_absolute(output if file is None else file.folder),
            model=_seen_by_all(args.model),
            load=_Loader(args),
            settings={**_settings(args), "output": written_as.suffix},
            adapter=_seen_by_all(getattr(args, "peft_path", None)),
            cache_dir=getattr(args, "cache_dir", None),
            shard_rows=args.shard_rows,
            strict=args.strict,
            warmup=args.warmup,
        )
        engine = _engine(args)
        try:
            complete, summary = run_job(job, engine, file=file, overwrite=args.overwrite)
        except SystemExit as stop:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # a second one would end the process with another code
            print("flax-rerank: told to stop; the same command goes on from here", file=sys.stderr, flush=True)
            if jax.distributed.is_initialized() and not engine.lock_step:
                os._exit(int(stop.code))  # else it would wait for the other processes, which may have hours to go
            raise
        if args.output == STANDARD_STREAM:
            _copy_to_standard_output(file)
    if not engine.writes:
        return 0
    print(in_words(summary), file=sys.stderr)
    if not complete:
        print(f"shards of other processes are not finished yet: no {job.files.summary} so far", file=sys.stderr)
    return 0


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help=".jsonl (.gz, .zst) or .parquet files, patterns like 'pairs/*.jsonl', URLs; - for JSON lines on standard "
        "input",
    )
    group.add_argument("--query-field", default="query", metavar="NAME", help="field or column of the query")
    group.add_argument("--passage-field", default="passage", metavar="NAME", help="field or column of the passage")
    group.add_argument(
        "--run", dest="trec_run", metavar="FILE", help='a run to rerank, lines of "qid Q0 docid rank score tag"'
    )
    group.add_argument("--queries", metavar="FILE", help="their texts, .jsonl (BEIR) or .tsv")
    group.add_argument("--corpus", metavar="FILE", help="the passages' texts, .jsonl (BEIR) or .tsv")
    group.add_argument("--beir", metavar="DIR", help="a BEIR folder, instead of --queries and --corpus")
    group.add_argument("--top-k", type=_positive, default=100, metavar="N", help="passages a query that are reranked")


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        required=True,
        help='.jsonl (.gz, .zst), .parquet or .trec: the input with "score" (with several cutoff layers "score_8", '
        "...), in one file; any other name: a folder of parts, for several processes; - for standard output",
    )
    group.add_argument("--format", choices=["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "trec"], help="of a folder")
    group.add_argument("--tag", default="flax-rerank", metavar="NAME", help="the name of a TREC run")
    group.add_argument("--overwrite", action="store_true", help="start anew, whatever is there already")


def _add_job_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--shard-rows", type=_positive, default=10_000, metavar="N", help="rows that are read and written at a time"
    )
    group.add_argument("--strict", action="store_true", help="stop at the first row that cannot be scored")
    group.add_argument("--warmup", action="store_true", help="compile all shapes before the first shard")
    group.add_argument("--compile-cache", metavar="DIR", help="keep compiled programs here for the next start")
    group.add_argument("--no-progress", action="store_true", help="show no progress bars")


def _add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mesh", metavar="M", help='"data=4,model=2"; by default all devices share each batch')
    group.add_argument(
        "--replicate", nargs="+", choices=AXES, default=[], metavar="AXIS", help=f"do not split: {', '.join(AXES)}"
    )
    group.add_argument(
        "--num-shards", type=_positive, metavar="N", help="processes that share the job, started by hand"
    )
    group.add_argument("--shard-index", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument("--distributed", action="store_true", help="find the other processes by jax.distributed")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="for --distributed, where JAX cannot find it")
    group.add_argument("--num-processes", type=_positive, metavar="N", help="the same")
    group.add_argument("--process-id", type=int, metavar="I", help="the same")
    group.add_argument("--engine", choices=["local", "ray"], default="local", help="what runs the shards")
    group.add_argument("--ray-address", metavar="A", help='of a Ray cluster, "auto" for the one of this machine')
    group.add_argument("--ray-actors", type=_positive, default=1, metavar="N", help="rerankers on the Ray cluster")
    group.add_argument(
        "--ray-resources", nargs="+", type=_resource, default=[], metavar="R=N", help="of each: CPU=4, GPU=1, TPU=4"
    )


def _add_reranker_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--devices", nargs="+", type=_device, metavar="D", help='"cpu", "gpu", "tpu", "cuda:0", 0, ...')
    group.add_argument("--batch-size", type=_positive, metavar="N", help="times max-length: tokens in a step at most")
    add_settings(group, lambda field: field.metadata["kept"])


class _Loader:
    """Makes the reranker that the options describe, here or on another machine."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._model = _seen_by_all(args.model)
        self._compile_cache = args.compile_cache
        given = given_arguments(args)
        if "peft_path" in given:
            given["peft_path"] = _seen_by_all(given["peft_path"])
        self._given = argparse.Namespace(**given)
        self._more: dict[str, Any] = {}
        if args.mesh is not None:
            self._more["mesh"] = args.mesh
        if args.replicate:
            self._more["sharding_rules"] = ShardingRules(**dict.fromkeys(args.replicate))

    def __call__(self) -> AbsReranker:
        if self._compile_cache is not None:
            use_compile_cache(self._compile_cache)
        return FlaxAutoReranker.from_finetuned(self._model, **given_arguments(self._given), **self._more)


def _source(args: argparse.Namespace, stack: ExitStack) -> Source:
    """The input.

    Raises:
        ValueError: no input or two, or a pattern that no file matches; and as `open_source`.
    """
    if (args.input is None) == (args.trec_run is None):
        raise ValueError("give --input for pairs, or --run for a run to rerank, and not both")
    if args.trec_run is not None:
        if (args.beir is None) == (args.queries is None) or (args.queries is None) != (args.corpus is None):
            raise ValueError("a run needs its texts: --queries and --corpus, or --beir")
        queries, corpus = (args.queries, args.corpus) if args.beir is None else beir_files(args.beir)
        run, queries, corpus = (_seen_by(args.engine, path) for path in (args.trec_run, queries, corpus))
        return TrecSource(run, queries, corpus, args.top_k)
    if args.queries is not None or args.corpus is not None or args.beir is not None:
        raise ValueError("--queries, --corpus and --beir belong to a --run")
    if STANDARD_STREAM in args.input:
        if len(args.input) > 1:
            raise ValueError("standard input comes alone, without other files")
        paths = [_spool(stack)]
    else:
        paths = [path for pattern in args.input for path in _expand(pattern)]
    for path in paths:
        if os.path.exists(path) and os.path.exists(args.output) and os.path.samefile(path, args.output):
            raise ValueError(f"input and output are the same file, {path}")
    return open_source(
        [_seen_by(args.engine, path) for path in paths], query_field=args.query_field, passage_field=args.passage_field
    )


def _spool(stack: ExitStack) -> str:
    """Standard input as a file: a job reads its input twice."""
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="flax-rerank-")), "stdin.jsonl")
    with open(path, "wb") as sink:
        shutil.copyfileobj(sys.stdin.buffer, sink)
    return path


def _expand(pattern: str) -> Sequence[str]:
    if not glob.has_magic(pattern) or (not files.is_url(pattern) and os.path.exists(pattern)):
        return [pattern]
    if files.is_url(pattern):
        import fsspec

        found = sorted(file.full_name for file in fsspec.open_files(pattern, "rb"))
    else:
        found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise ValueError(f"no file matches {pattern}")
    return found


def _format_of_name(path: str) -> Format | None:
    """The format that a name says it has; None for a folder's name."""
    try:
        return format_of(os.path.basename(path))
    except ValueError:
        return None


def _format(args: argparse.Namespace, source: Source, name: str) -> Format:
    schema = source.schema() if isinstance(source, ParquetSource) else None
    chosen = format_of(name, schema=schema, tag=args.tag)
    if isinstance(chosen, TrecFormat):
        if not isinstance(source, TrecSource):
            raise ValueError(f"{args.output}: a TREC run is made of one (--run), not of pairs")
        if len(getattr(args, "cutoff_layers", ())) > 1:
            raise ValueError("a TREC run has one score: give one of the --cutoff-layers")
    return chosen


def _refuse_place(output: str, file: OneFile | None) -> None:
    if files.is_url(output):
        return
    if file is None and os.path.isfile(output):
        raise NotADirectoryError(f"{output} is a file, and its name says no format that there is: give a folder")
    if file is not None and os.path.isdir(output):
        raise IsADirectoryError(f"{output} is a directory, not a file")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in given_arguments(args).items() if name not in NO_SETTINGS}
    given["adapter"] = getattr(args, "peft_path", None)
    if args.trec_run is None:
        return {**given, "query_field": args.query_field, "passage_field": args.passage_field}
    return {**given, "top_k": args.top_k, "tag": args.tag}


def _engine(args: argparse.Namespace) -> Engine:
    """What runs the shards, and this process's place among others.

    Raises:
        ValueError: options that do not go together.
    """
    by_hand = args.num_shards is not None or args.shard_index is not None
    by_jax = args.distributed or any(
        value is not None for value in (args.coordinator, args.num_processes, args.process_id)
    )
    if args.engine == "ray":
        if by_hand or by_jax:
            raise ValueError("with --engine ray, Ray deals out the shards: no --num-shards, no --distributed")
        return RayEngine(
            address=args.ray_address,
            actors=args.ray_actors,
            resources=dict(args.ray_resources),
            show_progress_bar=_shows_progress(args),
        )
    if by_hand and by_jax:
        raise ValueError("give --num-shards and --shard-index, or --distributed, and not both")
    if by_hand:
        if args.num_shards is None or args.shard_index is None or not 0 <= args.shard_index < args.num_shards:
            raise ValueError("--num-shards N and --shard-index I go together, with I from 0 to N - 1")
        return LocalEngine(args.shard_index, args.num_shards, show_progress_bar=_shows_progress(args))
    if not by_jax and not distributed.is_pod_worker():
        return LocalEngine(show_progress_bar=_shows_progress(args))
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    mesh = make_mesh(getattr(args, "devices", None), args.mesh)
    return LocalEngine(
        jax.process_index(), jax.process_count(), spans_processes(mesh), show_progress_bar=_shows_progress(args)
    )


def _copy_to_standard_output(file: OneFile) -> None:
    with files.open_raw(file.path) as scores:
        shutil.copyfileobj(scores, sys.stdout.buffer)
    sys.stdout.flush()
    if files.exists(file.rejects):
        with open(file.rejects, encoding="utf-8") as rejects:
            shutil.copyfileobj(rejects, sys.stderr)


def _seen_by(engine: str, path: str) -> str:
    """A path as the engine's processes have it: Ray's have another working directory."""
    return _absolute(path) if engine == "ray" else path


def _seen_by_all(model: str | None) -> str | None:
    """A model's folder as every process has it; a name on the hub is one already."""
    return _absolute(model) if model is not None and os.path.isdir(model) else model


def _absolute(path: str) -> str:
    return path.rstrip("/") if files.is_url(path) else os.path.abspath(path)


def _shows_progress(args: argparse.Namespace) -> bool:
    return not args.no_progress and sys.stderr.isatty()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _device(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no NAME=AMOUNT, such as GPU=1") from error
