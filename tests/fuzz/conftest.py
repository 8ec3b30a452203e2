"""A fixture that runs a property on inputs made by hypothesis, and the counts of a long run."""

import os
import secrets
import signal
import time
from collections import Counter

import pytest
from fuzzing import Outcome
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FLAX_RERANK_FUZZ_SECONDS", "600"))
MOST_SECONDS = 120  # of one example: more is a hang
COUNTS: dict[str, Counter[str]] = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == item.config.rootpath / "tests" / "fuzz":
            item.add_marker("fuzz")
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture
def fuzz(request):
    """`fuzz(check, *strategies, examples=N)`: call `check` with N examples, the same in every run; under `-m fuzz`,
    with random ones for this test's share of the time. `check` gives an `Outcome`, which is counted."""
    is_long = request.config.option.markexpr == "fuzz"
    seconds = SECONDS / len(request.session.items)
    counts = COUNTS.setdefault(request.node.name, Counter())

    def hangs(number, frame):
        raise AssertionError(f"more than {MOST_SECONDS} s")

    def run(check, *strategies, examples):
        def counted(values):
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
            try:
                counts[Outcome(check(*values)).name.lower()] += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

        start = time.monotonic()
        while True:
            test = settings(
                max_examples=examples,
                derandomize=not is_long,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(given(st.tuples(*strategies))(counted))
            (seed(secrets.randbits(64))(test) if is_long else test)()
            if not is_long or time.monotonic() - start > seconds:
                break

    before = signal.signal(signal.SIGALRM, hangs)
    yield run
    signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == "fuzz":
        for name, counts in COUNTS.items():
            terminalreporter.write_line(f"{name}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
