"""Signals to the command: one exit code each, without a traceback, from the first import on."""

import os
import signal
import subprocess
import sys

import pytest
from reference_cases import CASES

from flax_rerank.cli import main

COMMAND = [sys.executable, "-c", "import sys; from flax_rerank.cli import main; sys.exit(main(sys.argv[1:]))"]
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
# Imported instead of JAX. Like many a package, it makes something else of an exception.
SIGNALLED_IMPORT = """
import os
try:
    os.kill(os.getpid(), {number})
except BaseException as error:
    raise ImportError("there is no jax") from error
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_during_the_imports_ends_the_process(tmp_path, number, code):
    (tmp_path / "jax.py").write_text(SIGNALLED_IMPORT.format(number=int(number)))
    arguments = ["score", "--model", str(CASES / "encoder-bert"), "--input", "none.jsonl", "--output", "out.jsonl"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_a_running_command_lets_it_clean_up(tmp_path, monkeypatch, number, code):
    def signalled(*args, **kwargs):
        os.kill(os.getpid(), number)
        raise AssertionError("it goes on")

    before = {each: signal.getsignal(each) for each, _ in SIGNALS}
    monkeypatch.setattr("flax_rerank.saving.flax_checkpoint.write_params", signalled)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["convert", str(CASES / "encoder-bert"), str(tmp_path / "out"), "--no-progress"])
        assert stop.value.code == code
        assert list(tmp_path.iterdir()) == []
        assert [signal.getsignal(each) for each in before] == [signal.SIG_IGN] * 2  # a second one changes nothing
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_command_that_ends_gives_the_handlers_back(tmp_path, capsys):
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before
