"""The input of a job, as its options name it."""

import glob
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack

from flax_rerank.jobs import files
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.sources import Source, TrecSource, beir_files, open_source


def source_of(options: JobOptions, stack: ExitStack) -> Source:
    """The input. The stack keeps a copy of standard input until it is left.

    Raises ValueError if no file matches a pattern, if the input is the output, and as `open_source`.
    """
    # Ray's processes have another working directory.
    path_of = files.absolute if options.engine == "ray" else str
    if options.run is not None:
        texts = (options.queries, options.corpus) if options.beir is None else beir_files(options.beir)
        run, queries, corpus = (path_of(str(path)) for path in (options.run, *texts))
        return TrecSource(run, queries, corpus, options.top_k)
    if options.inputs == [STANDARD_STREAM]:
        # As a file: a job reads its input twice.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flax-rerank-"))
        paths = [os.path.join(folder, "stdin.jsonl")]
        with open(paths[0], "wb") as sink:
            shutil.copyfileobj(sys.stdin.buffer, sink)
    else:
        paths = [path for pattern in options.inputs for path in _expand(pattern)]
    for path in paths:
        if os.path.exists(path) and os.path.exists(options.output) and os.path.samefile(path, options.output):
            raise ValueError(f"input and output are the same file, {path}")
    return open_source(list(map(path_of, paths)), query_field=options.query_field, passage_field=options.passage_field)


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
