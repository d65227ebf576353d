"""Read one input under limits: time, memory, and which exception may come out of it.

Time is that of the processor, so that a machine shared with others accuses nobody; a reader that waits
without end (for a pipe, say) uses none, and is stopped by the clock on the wall. Memory is the peak of what
the process really holds (``VmHWM``), which Linux lets a process reset before every input.
"""

from __future__ import annotations

import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType

from apr_falsify.errors import AprFalsifyError

SECONDS = 2.0
"""Of the processor, that one input may take."""

WAITING = 20.0
"""On the wall, after which a reader counts as waiting for something that never comes."""

FACTOR, ALLOWANCE = 4, 64 << 20
"""An input of n bytes may make the process grow by ``FACTOR * n + ALLOWANCE`` bytes."""

ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one input.

    Attributes:
        ended: :data:`ACCEPTED`, the name of the typed error, or of what no reader may raise.
        defect: what is wrong with the reader, in one line; ``None`` where nothing is.
        seconds: of the processor.
        growth: bytes by which the process grew beyond what it held before.
        details: the traceback of a defect.

    """

    ended: str
    defect: str | None
    seconds: float
    growth: int
    details: str = ""


class _Stopped(BaseException):
    """The input took too long; no ``except Exception`` of a reader catches it."""


def held() -> int:
    """Return how many bytes the process holds in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Return the most bytes that were held since the last reset; ``ru_maxrss`` remembers the parent's too."""
    with open("/proc/self/status", "rb") as file:
        status = file.read()
    start = status.index(b"VmHWM:") + len(b"VmHWM:")
    return int(status[start : status.index(b"kB", start)]) << 10


def _reset_peak() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


@contextmanager
def strict() -> Iterator[None]:
    """Make warnings errors: a user who is shown one learns nothing that a message would not say better."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def measured(read: Callable[[], object], size: int, before: int) -> Result:
    """Call ``read`` under the limits.

    Args:
        read: reads the input.
        size: its bytes.
        before: what the process held before, in bytes.

    """
    _reset_peak()
    caught: BaseException | None = None
    start = time.process_time()
    with _limited(start):
        try:
            _told(read)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            caught = error
    seconds, growth = time.process_time() - start, _peak() - before
    return _judged(caught, seconds, growth, size)


def _told(read: Callable[[], object]) -> None:
    try:
        read()
    except AprFalsifyError as error:
        str(error)  # making its message must not fail either
        raise


def _judged(caught: BaseException | None, seconds: float, growth: int, size: int) -> Result:
    ended, defect, details = ACCEPTED if caught is None else type(caught).__name__, None, ""
    if isinstance(caught, _Stopped):
        ended, defect = "stopped", f"took over {SECONDS:g} s {_place(caught.__traceback__)}"
    elif caught is not None and not isinstance(caught, AprFalsifyError):
        defect = f"{ended} {_place(caught.__traceback__)}"
    elif seconds > SECONDS:
        defect = f"took over {SECONDS:g} s"
    elif growth > FACTOR * size + ALLOWANCE:
        defect = "grew beyond the limit"
    if defect is not None and caught is not None:
        details = "".join(traceback.format_exception(caught))
    return Result(ended=ended, defect=defect, seconds=seconds, growth=growth, details=details)


def _place(trace: TracebackType | None) -> str:
    """Return the last line of ours in a traceback: what tells one defect from another."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "/apr_falsify/" in frame.filename]
    if not ours:
        return "outside the package"
    last = ours[-1]
    return f"in {last.filename.rpartition('/apr_falsify/')[2]}:{last.lineno}"


@contextmanager
def _limited(start: float) -> Iterator[None]:
    """Stop what takes too long; again after as long, where a reader has swallowed that."""
    spent, waited = start, time.monotonic()

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal spent, waited
        if time.process_time() - spent > SECONDS or time.monotonic() - waited > WAITING:
            spent, waited = time.process_time(), time.monotonic()
            raise _Stopped

    earlier = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS / 4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
