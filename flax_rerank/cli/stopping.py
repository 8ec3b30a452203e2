"""What the subcommands share that run a job: its messages, and its end by a signal."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def job_messages() -> Iterator[None]:
    """Show the messages of a job. A signal that ends it is the last one that counts: a second would end the process
    with another exit code."""
    logging.basicConfig(format="flax-rerank: %(message)s")
    logging.getLogger("flax_rerank").setLevel(logging.INFO)
    try:
        yield
    except SystemExit:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise
