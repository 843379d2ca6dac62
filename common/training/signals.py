"""Signals that ask a run to stop: from the command's first line to its last, in this process alone.

Before training begins a signal ends the command at once, since there is nothing to save. While it trains, the step at
hand is finished and saved first (`common.training.checkpoints.LastCheckpoint`). Loader processes never see a signal
that is sent to the whole process group (Ctrl-C, a scheduler): they are started with signals blocked.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

# Of schedulers, of SLURM and of submitit before a time limit, Ctrl-C, a closed terminal.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
PATIENCE = 5.0  # seconds until a stop before training begins is taken for lost, and asked for again
OFTEN = 0.1  # seconds between looks whether an import is through
AGAIN = "continue with the same command and --resume auto"


class Stopped(BaseException):
    """A signal stopped the run. No `Exception`, as `KeyboardInterrupt`: nobody handles it on the way out."""


class StopRequest:
    """Whether a signal has asked this process to stop. There is one of it, as there is one table of handlers."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.training = False  # then a step is finished and saved first
        self.begun = False  # then there may be something to clear up
        self.raised = False  # the exception is on its way
        self.resent = False  # the next signal is `_watch`'s, nobody's second Ctrl-C
        self.owner = 0  # the process that listens; a forked child has its handlers too

    @contextlib.contextmanager
    def listening(self, last: bool = False) -> Iterator[None]:
        """Handle signals within the block, in the main thread (elsewhere they cannot be); blocks may be nested.

        Args:
            last: this is all that the process does. Until `begun` a signal ends it where it is; once one has stopped
                it, further ones are ignored, since they would change its exit status while Python ends.
        """
        if threading.current_thread() is not threading.main_thread() or self.owner == os.getpid():
            yield
            return
        self.signal, self.training, self.raised = None, False, False
        self.begun, self.owner = not last, os.getpid()
        # A signal that is ignored when the command starts stays so (nohup), except Ctrl-C, which every shell ignores
        # for background jobs of a script.
        taken = [one for one in SIGNALS if one == signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN]
        before = {one: signal.signal(one, self._on_signal) for one in taken}
        unraisable = sys.unraisablehook
        sys.unraisablehook = partial(self._on_dropped, unraisable)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        try:
            yield
        finally:
            self.owner, self.raised = 0, False
            sys.unraisablehook = unraisable
            signal.set_wakeup_fd(wakeup)
            for one, handler in before.items():
                signal.signal(one, signal.SIG_IGN if last and self.signal else handler)
            os.close(writer)  # ends the thread
            # Loader processes whose loader was cut off: when it ends, Python waits for them, after a SIGTERM that they
            # never see.
            for child in multiprocessing.active_children() if last else ():
                child.kill()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            return
        again, self.resent = number == signal.SIGINT == self.signal and not self.resent, False
        self.signal = signal.Signals(number)
        if not self.begun:
            self.end()
        if again and not is_import(frame):
            raise KeyboardInterrupt
        if self.training:
            more = " (again: stop at once)" * (number == signal.SIGINT)
            tell(f"\n{self.signal.name}: saving after this step{more}")
        # Schedulers send several: the second would cut off what is done on the way out. An import is let through
        # (`_watch` sends the signal again): libraries that are cut off there abort, or go on half-made.
        elif not self.raised and not is_import(frame):
            self.raised = True
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What is raised, or was and came out as another error."""
        name = self.signal.name if self.signal else "a signal"
        return Stopped(f"stopped by {name} before the first step, {AGAIN}")

    def end(self) -> NoReturn:
        """At once, without clearing up."""
        if not rank():
            tell(f"weakseg: {self.stopped()}")
        os._exit(os.EX_TEMPFAIL)

    def _on_dropped(self, before: Callable[[Any], Any], what: Any) -> None:
        """Python drops exceptions in `__del__` and in what it calls at a fork; `_watch` raises ours again."""
        if not isinstance(what.exc_value, Stopped):
            before(what)

    def _watch(self, reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] in SIGNALS:  # others wake it up too
                self._see_to_it(number[0])
        os.close(reader)

    def _see_to_it(self, number: int) -> None:
        """That a process that was asked to stop before training begins does. The exception had to wait for an import;
        or it was lost in foreign code, and is raised once more; or no handler can run, because the process waits in C
        for other ranks that have stopped: then it is ended."""
        main = threading.main_thread().ident
        for _ in range(2):
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                time.sleep(OFTEN)
                if not self.owner or self.training:
                    return
                if not self.raised and main is not None:
                    self.resent = True
                    signal.pthread_kill(main, number)
            self.raised = False
        self.signal = signal.Signals(number)
        self.end()


stop_request = StopRequest()


def rank() -> int:
    """Of this process among those that Lightning, torchrun or srun have started."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0)


def is_import(frame: FrameType | None) -> bool:
    """Whether Python is importing a module there."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def tell(text: str) -> None:
    """Write a line past Python's streams, which may be in use or broken when a signal comes."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Signals that ask to stop wait for the block's end; processes started in it never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that comes. Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class LossyStream:
    """An output stream that nobody has to read: what cannot be written (a broken pipe, a closed terminal, a full disk
    under a log) is dropped, and the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        # What the stream still holds goes nowhere too, or it would be tried again when Python ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lossy_output() -> Iterator[None]:
    """`LossyStream`s as stdout and stderr within the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, LossyStream(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
