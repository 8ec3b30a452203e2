"""The input and the output of a job, as its options name them."""

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from flax_rerank.jobs import files
from flax_rerank.jobs.formats import PARQUET, SUFFIX, Format, format_of
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.sources import Limits, ParquetSource, Source, TrecSource, beir_files, open_source
from flax_rerank.jobs.sources.parquet import json_holds, schema_of


def source_of(options: JobOptions, stack: ExitStack) -> Source:
    """The input. The stack keeps a copy of standard input until it is left.

    Raises ValueError if no file matches a pattern, if the input is the output, and as `open_source`.
    """
    # Ray's processes have another working directory.
    path_of = files.absolute if options.engine == "ray" else str
    limits = Limits(options.max_line_bytes, options.max_text_chars)
    if options.run is not None:
        texts = (options.queries, options.corpus) if options.beir is None else beir_files(options.beir)
        paths = [str(path) for path in (options.run, *texts)]
        _refuse_output(options.output, paths)
        run, queries, corpus = map(path_of, paths)
        return TrecSource(run, queries, corpus, options.top_k, limits)
    if options.inputs == [STANDARD_STREAM]:
        # As a file: a job reads its input twice.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flax-rerank-"))
        paths = [os.path.join(folder, "stdin.jsonl")]
        with open(paths[0], "wb") as sink:
            shutil.copyfileobj(sys.stdin.buffer, sink)
    else:
        paths = [path for pattern in options.inputs for path in _expand(pattern)]
    _refuse_output(options.output, paths)
    fields = {"query_field": options.query_field, "passage_field": options.passage_field}
    return open_source(list(map(path_of, paths)), **fields, limits=limits)


def output_of(options: JobOptions, stack: ExitStack) -> tuple[str, str | None]:
    """The job's folder, and the file that its parts become, or None where the folder itself is the output.

    The stack keeps a temporary file for standard output until it is left. Raises ValueError for an unknown suffix, or
    if a format is given for a file whose name says it; and OSError where a folder is to be written and a file is, or
    the other way round.
    """
    output = options.output
    if output == STANDARD_STREAM:
        kind = options.format or ("jsonl" if options.run is None else "trec")
        output = f"{stack.enter_context(tempfile.TemporaryDirectory(prefix='flax-rerank-'))}/scores.{kind}"
    elif not SUFFIX.search(os.path.basename(output)):
        if os.path.isfile(output):
            raise NotADirectoryError(
                f"{output} is a file whose name has no known suffix: give a folder, or a known suffix"
            )
        if os.path.splitext(os.path.basename(output))[1]:
            format_of(output)  # raises with the known suffixes
        return files.absolute(output), None
    elif options.format is not None:
        raise ValueError(f"the suffix of {output} says the format: give format only for a folder or standard output")
    elif os.path.isdir(output):
        raise IsADirectoryError(f"{output} is a directory, not a file")
    return files.absolute(f"{output}.job"), output


def format_for(file: str | None, options: JobOptions, source: Source, scores: int) -> Format:
    """The format of the output. Raises ValueError for a TREC run of pairs, or with several scores for each row; and
    for columns that the output cannot hold."""
    schema = source.schema() if isinstance(source, ParquetSource) else None
    chosen = format_of(file or f".{options.format or 'jsonl'}", schema=schema, tag=options.tag)
    if chosen.is_run and not isinstance(source, TrecSource):
        raise ValueError(f"{options.output}: pairs cannot be written as a TREC run; rerank a TREC run (run)")
    if chosen.is_run and scores > 1:
        raise ValueError(f"a TREC run has one score: give one of the {scores} cutoff_layers")
    if isinstance(source, ParquetSource) and chosen.suffix != PARQUET:
        for file in source.files:
            for field in schema_of(file):
                if not json_holds(field.type):
                    raise ValueError(
                        f'{file}: the column "{field.name}" holds {field.type}, for which JSON has no type: write '
                        "Parquet, or leave the column out"
                    )
    return chosen


def copy_to_standard_output(job: Job) -> None:
    """Write a job's one file to standard output, and its rejects to standard error."""
    with files.open_raw(str(job.file)) as scores:
        shutil.copyfileobj(scores, sys.stdout.buffer)
    sys.stdout.flush()
    if files.exists(job.all_rejects):
        with open(job.all_rejects, encoding="utf-8") as rejects:
            shutil.copyfileobj(rejects, sys.stderr)


def _refuse_output(output: str, paths: Iterable[str]) -> None:
    """Raise ValueError if an input is the output, also through links, or is among the files of the job."""
    for path in paths:
        for target in (output, f"{output}.job", f"{output}.summary.json", f"{output}.rejects.jsonl"):
            if files.is_url(path) or files.is_url(target):
                same = path == target
            else:
                same = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target)) or (
                    os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target)
                )
            if same:
                where = "are the same file" if target == output else f"share the file or folder {target}"
                raise ValueError(f"input and output {where}, {path}")


def _expand(pattern: str) -> list[str]:
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
