"""The input of a job, as its options name it."""

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from flax_rerank.jobs import files
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.rows import Source
from flax_rerank.jobs.sources import TrecSource, beir_files, open_source


def source_of(options: JobOptions, stack: ExitStack) -> Source:
    """The input.

    Args:
        options: the options.
        stack: keeps standard input as a file until it is left.

    Raises:
        ValueError: no file matches a pattern; the input is the output; and as `open_source`.
        FileNotFoundError: the BEIR folder has no texts.
    """
    # Ray's processes have another working directory.
    seen = files.absolute if options.engine == "ray" else str
    if options.run is not None:
        if options.beir is not None:
            queries, corpus = beir_files(options.beir)
        else:
            queries, corpus = str(options.queries), str(options.corpus)
        return TrecSource(seen(options.run), seen(queries), seen(corpus), options.top_k)
    if options.inputs == [STANDARD_STREAM]:
        paths: Sequence[str] = [_spool(stack)]
    else:
        paths = [path for pattern in options.inputs for path in _expand(pattern)]
    for path in paths:
        if os.path.exists(path) and os.path.exists(options.output) and os.path.samefile(path, options.output):
            raise ValueError(f"input and output are the same file, {path}")
    return open_source(list(map(seen, paths)), query_field=options.query_field, passage_field=options.passage_field)


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
