"""Signals: a command that is asked to stop saves what there is to save and ends, whatever it is doing."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals by which SLURM, torchrun, cloud machines and Ctrl-C ask a process to stop."""

LAUNCHER = "LIGHTNING_DDPM_LAUNCHER"
"""Environment variable with the process that started the others of a run."""

WORKER_SECONDS = 60
"""How long a worker of a data loader outlives SIGTERM, which it may get because the whole process group gets it."""


class _Watch:
    """What has been received, and what a signal does now.

    Attributes:
        received: the first signal.
        interrupts: number of times Ctrl-C was pressed.
        ending: the sentence and exit status with which a signal ends the process; ``None`` while training reads
            ``received`` after each step.
        active: whether a thread watches the signals of this process.
        parent: the process that started this one as one of its ranks.
        asked_parent: whether this rank has asked it to end all ranks.
    """

    received: signal.Signals | None = None
    interrupts = 0
    ending: tuple[str, int | None] | None = None
    active = False
    parent: int | None = None
    asked_parent = False
    list_ranks: Callable[[], Sequence[subprocess.Popen[bytes]]] = staticmethod(list)


_watch = _Watch()


def watch_signals(sentence: str, status: int | None) -> None:
    """Have a signal end this process, until :func:`hold_signals`; for the main thread of a program.

    A thread does that, because Python's own handlers wait until the main thread returns from a library, which it never
    does if it waits for another rank that has ended already.

    Args:
        sentence: printed after the signal's name.
        status: the exit status; ``None`` for 128 + the signal's number.
    """
    launcher = os.environ.get(LAUNCHER)
    _watch.parent = int(launcher) if launcher == str(os.getppid()) else None
    os.environ[LAUNCHER] = str(os.getpid())
    _watch.active, _watch.ending = True, (sentence, status)
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    note_signals()
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=protect_worker)
    threading.Thread(target=_read_signals, args=(received,), daemon=True, name="signals").start()


def note_signals() -> None:
    """Have Python's handlers note the signals, in place of those of a library."""
    if threading.current_thread() is threading.main_thread():
        for each in STOP_SIGNALS:
            signal.signal(each, _note)


def hold_signals() -> None:
    """Have a signal wait for :func:`get_signal`; a second Ctrl-C still ends the process."""
    _watch.ending = None
    if not _watch.active:
        _watch.received, _watch.interrupts = None, 0
    note_signals()


def release_signals(sentence: str, status: int | None = 0) -> None:
    """Have a signal end the process again, and one that has been noted end it now; for programs that watch signals."""
    if _watch.active:
        _watch.ending = sentence, status
        if _watch.received is not None:
            _react(_watch.received)


def get_signal() -> signal.Signals | None:
    """Return the first signal that this process has received."""
    return _watch.received


def end_with_ranks(list_ranks: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> None:
    """Have a signal that ends this process end the ranks that it started, too."""
    _watch.list_ranks = list_ranks


def protect_worker(worker: int = 0) -> None:
    """Let a data loader's worker serve the last step when a whole process group gets a signal.

    Workers that are forked call it at once; those that are spawned, as ``worker_init_fn``. It does nothing outside a
    program that watches signals.
    """
    if LAUNCHER not in os.environ:
        return
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))


def _note(number: int, frame: FrameType | None) -> None:
    _watch.received = _watch.received or signal.Signals(number)
    if not _watch.active and number == signal.SIGINT:
        _watch.interrupts += 1
        if _watch.interrupts > 1:
            raise KeyboardInterrupt


def _read_signals(descriptor: int) -> None:
    while numbers := os.read(descriptor, 64):
        for number in numbers:
            if number in STOP_SIGNALS:
                _watch.interrupts += number == signal.SIGINT
                _react(signal.Signals(number))


def _react(received: signal.Signals) -> None:
    if _watch.ending is not None:
        if _watch.parent is not None and _watch.parent == os.getppid() and not _watch.asked_parent:
            _watch.asked_parent = True
            time.sleep(0.5)  # the parent may have got the signal as well, and then ends all ranks
            if _watch.parent == os.getppid():
                os.kill(_watch.parent, signal.SIGTERM)
                return
        sentence, status = _watch.ending
        _end(received, sentence, 128 + received if status is None else status)
    elif received is signal.SIGINT and _watch.interrupts > 1:
        _end(received, "aborted by the second Ctrl-C; what followed the last checkpoint is lost", 128 + received)


def _end(received: signal.Signals, sentence: str, status: int) -> None:
    """End the process as SIGKILL does, which every file that this package writes survives, but with a status."""
    for rank in _watch.list_ranks():
        rank.kill()  # asked to end by itself, it could first report that it has lost this rank
    if sentence and (_watch.parent is None or status):
        show = "\x1b[?25h" if os.isatty(1) else ""  # a progress bar hides the cursor
        with contextlib.suppress(OSError):
            os.write(2 if status else 1, f"{show}{received.name}: {sentence}\n".encode())
    os._exit(status)
