"""Signals to stop: SIGTERM from the system that takes the machine away, SIGINT from the keyboard."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """While this is entered, the first SIGTERM or SIGINT raises SystemExit, and later ones do nothing.

    The exit code is 143 or 130, as in shells. With `at_once`, SystemExit is raised in the handler, otherwise by the
    next `check`. Only the main thread gets signals, so in any other thread this does nothing.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._show_unraisable = sys.unraisablehook

    def __enter__(self) -> "StopSignals":
        self.install()
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        sys.unraisablehook = self._show_unraisable
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Handle the signals. Call it again after a library has installed handlers of its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before.setdefault(number, signal.signal(number, self._receive))

    def check(self) -> None:
        """Raise the SystemExit that is due: Python drops one that the handler raises inside a finaliser."""
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _unraisable(self, dropped: "sys.UnraisableHookArgs") -> None:
        if self.received is None or not isinstance(dropped.exc_value, SystemExit):
            self._show_unraisable(dropped)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if self.at_once:
                self.check()
