"""The output of a job, as its options name it: one file, a folder of parts, or standard output."""

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack

from flax_rerank.jobs import files
from flax_rerank.jobs.formats import TrecFormat, format_of
from flax_rerank.jobs.options import STANDARD_STREAM, JobOptions
from flax_rerank.jobs.rows import Format, Source
from flax_rerank.jobs.run import OneFile
from flax_rerank.jobs.sources import ParquetSource, TrecSource


def place_of(options: JobOptions, stack: ExitStack) -> OneFile | str:
    """The file to write, or the folder.

    Args:
        options: the options.
        stack: keeps a temporary file for standard output until it is left.

    Raises:
        ValueError: a format is given for a file whose name says it.
        NotADirectoryError, IsADirectoryError: a folder is to be written where a file is, or a file where a folder is.
    """
    output = options.output
    if output == STANDARD_STREAM:
        kind = options.format or ("jsonl" if options.run is None else "trec")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flax-rerank-"))
        return OneFile(os.path.join(folder, f"scores.{kind}"))
    if not _says_its_format(output):
        if not files.is_url(output) and os.path.isfile(output):
            raise NotADirectoryError(f"{output} is a file, and its name says no format that is known: give a folder")
        return files.absolute(output)
    if options.format is not None:
        raise ValueError(f"the name {output} says its format: format is for a folder or for standard output")
    if not files.is_url(output) and os.path.isdir(output):
        raise IsADirectoryError(f"{output} is a directory, not a file")
    return OneFile(output)


def format_at(place: OneFile | str, options: JobOptions, source: Source, scores: int) -> Format:
    """The format of the output.

    Args:
        place: where it goes.
        options: the options.
        source: the input.
        scores: how many each row gets.

    Raises:
        ValueError: a TREC run is to be written of pairs, or with several scores.
    """
    name = place.path if isinstance(place, OneFile) else f".{options.format or 'jsonl'}"
    schema = source.schema() if isinstance(source, ParquetSource) else None
    chosen = format_of(name, schema=schema, tag=options.tag)
    if isinstance(chosen, TrecFormat):
        if not isinstance(source, TrecSource):
            raise ValueError(f"{options.output}: a TREC run is made from a TREC run, not from pairs")
        if scores > 1:
            raise ValueError(f"a TREC run has one score: give one of the {scores} cutoff_layers")
    return chosen


def copy_to_standard_output(file: OneFile) -> None:
    """Write a file to standard output, and its rejects to standard error."""
    with files.open_raw(file.path) as scores:
        shutil.copyfileobj(scores, sys.stdout.buffer)
    sys.stdout.flush()
    if files.exists(file.rejects):
        with open(file.rejects, encoding="utf-8") as rejects:
            shutil.copyfileobj(rejects, sys.stderr)


def _says_its_format(path: str) -> bool:
    try:
        format_of(os.path.basename(path))
    except ValueError:
        return False
    return True
