"""Requests to another process, one JSON line each, and its answers. Runs in both environments: imports the standard
library alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent


class WorkerStopped(RuntimeError):
    """A worker ended before it answered."""


class Worker:
    """A process that measures one side. It sleeps while nothing is asked of it.

    Args:
        python: its interpreter.
        module: what it runs, which calls `serve`.
        settings: for that, as JSON.
        environment: variables beside those of this process.
    """

    def __init__(
        self, python: str, module: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._module = module
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS), "HF_HUB_OFFLINE": "1"} | dict(environment or {}),
        )

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Call the worker's method of this name.

        Returns:
            What it returned; "idle_cpu_seconds", what the worker used since its last answer; and "others_cpu_share",
            the share of the machine's CPU time that other processes took meanwhile.

        Raises:
            WorkerStopped: with the end of what it wrote to standard error.
        """
        start, busy = time.perf_counter(), cpu_seconds()
        try:
            print(json.dumps([request, arguments]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            self._errors.seek(0)
            why = "killed, likely out of memory: take smaller batches" if code == -9 else f"exit code {code}"
            raise WorkerStopped(f"{self._module} stopped ({why}):\n{self._errors.read()[-3000:]}")
        result = json.loads(answer)
        others = cpu_seconds() - busy - result.pop("cpu_seconds")
        available = (time.perf_counter() - start) * (os.cpu_count() or 1)
        return result | {"others_cpu_share": max(0.0, others / available)}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors, self._process:  # its input ends, and it does
            pass


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Answer requests until the input ends: each names a method of the object that `make` returns for the settings.

    Before `make` imports anything, the process is bound to as many CPUs as "threads" says, from which both JAX and
    PyTorch take the number of their threads.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    settings = json.loads(sys.argv[1])
    if settings["threads"] is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    side = make(settings)
    answered = time.process_time()
    for line in sys.stdin:
        asked = time.process_time()
        request, arguments = json.loads(line)
        answer = getattr(side, request)(**arguments) | {"idle_cpu_seconds": asked - answered}
        answered = time.process_time()
        answer["cpu_seconds"] = answered - asked
        print(json.dumps(answer), file=answers, flush=True)


def cpu_seconds() -> float:
    """CPU time that all processes of the machine have used since it started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """Bytes of main memory that this process had at the most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def product_rate(size: int, multiply: Callable[[], object], repetitions: int = 9) -> float:
    """The best of several products of two matrices, size by size, in operations a second."""
    multiply()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
