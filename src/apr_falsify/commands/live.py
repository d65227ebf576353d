"""A subject that is a program of its own: started before the oracle runs, so that both run at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apr_falsify.formats.weights import Model
from apr_falsify.subjects.interface import Startable, Subject
from apr_falsify.traces.capture import Request
from apr_falsify.traces.trace import is_trace, read_trace

_ORACLE_BYTES = 4
"""Bytes of a weight in the oracle: f32 on a CPU, less elsewhere."""

_LAYER = re.compile(r"\.([0-9]{1,9})\.")
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@contextmanager
def started_subject(
    subject: Subject, request: Request, *, earlier: Path | None, oracle: Model | None
) -> Iterator[Subject]:
    """Give ``subject`` with its token ids known; one that is a program runs meanwhile.

    Args:
        subject: what was opened.
        request: what it shall capture; its tokens do not matter.
        earlier: where its trace would lie from an earlier run; what lies there is not run again.
        oracle: the model that will be run beside it, where there is one; the two run one after the other
            where memory does not hold both, or nothing says how much there is.

    Raises:
        TraceError: what lies at ``earlier`` cannot be trusted.
        ProcessError: the program failed.

    """
    if not isinstance(subject, Startable):
        yield subject
    elif earlier is not None and is_trace(earlier):
        yield subject.captured(read_trace(earlier).tokens)
    else:
        with subject.begin(request) as run:
            if oracle is not None and subject.memory + oracle_memory(oracle, request) > free_memory():
                run.finish()
            yield run


def oracle_memory(model: Model, request: Request) -> int:
    """Return how many bytes the weights of the layers that the oracle loads take."""
    return sum(
        _ORACLE_BYTES * math.prod(tensor.shape)
        for name, tensor in model.weights.tensors.items()
        if (match := _LAYER.search(name)) is None or int(match[1]) < request.layers.stop
    )


def free_memory() -> int:
    """Return how many bytes are free, within the limit of this process's container; 0 where nothing says."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    with suppress(OSError, ValueError):  # no such file, or "max": no limit
        limit = int((_CGROUP / "memory.max").read_text())
        found.append(limit - int((_CGROUP / "memory.current").read_text()))
    return min(found, default=0)
