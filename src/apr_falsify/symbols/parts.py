"""Work done in equal parts, one a core, where there is enough of it.

A forked process needs nothing handed over and finds every module imported; only what it found comes back,
through a pipe. Where a process cannot be forked safely, or one of them dies, its part is done here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")
_MOST_CORES = 4


def in_parts(
    work: Callable[[Sequence[Item]], Found], items: Sequence[Item], *, at_least: int
) -> Iterator[Found]:
    """Yield what ``work`` finds in each part of ``items``; a part has ``at_least`` so many of them."""
    count = max(1, min(_cores(), _MOST_CORES, len(items) // at_least))
    parts = [items[at::count] for at in range(count)]
    with contextlib.ExitStack() as stack:
        begun = [(part, _fork(work, part, stack)) for part in parts[1:]]
        yield work(parts[0])
        for part, (process, answer) in begun:
            data = answer.read()
            _, status = os.waitpid(process, 0)
            yield work(part) if status else pickle.loads(data)


def _cores() -> int:
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fork(
    work: Callable[[Sequence[Item]], Found], part: Sequence[Item], stack: contextlib.ExitStack
) -> tuple[int, BinaryIO]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, stack.enter_context(open(reading, "rb"))
    status = 1
    with contextlib.suppress(BaseException):  # the parent does the part again, and meets the error itself
        os.close(reading)
        with open(writing, "wb") as answer:
            pickle.dump(work(part), answer, protocol=pickle.HIGHEST_PROTOCOL)
        status = 0
    os._exit(status)
