"""Progress on a terminal's stderr; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any

import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apr_falsify.capture import Sink
from apr_falsify.geometry import Geometry
from apr_falsify.stages import Layout
from apr_falsify.trace import Key, Provenance, Trace


class ProgressSink:
    """Passes stages on and shows how many of them are through.

    Args:
        sink: where the stages go.
        title: what is being captured.
        total: how many stages are expected.

    """

    def __init__(self, sink: Sink, title: str, total: int) -> None:
        self._sink = sink
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(f"capturing the {title}", total=total)
        self._progress.start()

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Pass one stage on."""
        self._sink.add(key, data, layout)
        self._progress.advance(self._task)

    def finish(self, *, provenance: Provenance, geometry: Geometry, tokens: tuple[int, ...]) -> Trace:
        """Finish the trace and take the bar away."""
        self._progress.stop()
        return self._sink.finish(provenance=provenance, geometry=geometry, tokens=tokens)


def progress_sink(sink: Sink, title: str, total: int) -> Sink:
    """Return ``sink`` with a progress bar on a terminal, as it is elsewhere."""
    return ProgressSink(sink, title, total) if sys.stderr.isatty() else sink
