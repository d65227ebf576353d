"""Progress on a terminal's stderr; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from apr_falsify.model.stages import Key, Layout
from apr_falsify.traces.capture import RunFacts, Sink
from apr_falsify.traces.trace import Trace


class ProgressSink:
    """Passes stages on and counts them.

    Args:
        sink: where the stages go.
        progress: where they are counted.
        task: which of its bars.

    """

    def __init__(self, sink: Sink, progress: Progress, task: TaskID) -> None:
        self._sink, self._progress, self._task = sink, progress, task

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Pass one stage on."""
        self._sink.add(key, data, layout)
        self._progress.advance(self._task)

    def finish(self, **facts: Unpack[RunFacts]) -> Trace:
        """Finish the trace."""
        return self._sink.finish(**facts)


@contextmanager
def counted(sink: Sink, title: str, total: int) -> Iterator[Sink]:
    """Give ``sink``, on a terminal with a bar that counts its stages and goes away in the end."""
    if not sys.stderr.isatty():
        yield sink
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressSink(sink, progress, progress.add_task(title, total=total))


@contextmanager
def busy(title: str) -> Iterator[None]:
    """Say on a terminal what is being done, until it is done."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(title):
        yield
