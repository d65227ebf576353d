"""The runtimes that can be a subject: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apr_falsify.errors import UsageError, nearest
from apr_falsify.subjects.apr import open_apr
from apr_falsify.subjects.embedded import open_embedded
from apr_falsify.subjects.interface import Runtime, RuntimeSetting, Subject, Target, read_options
from apr_falsify.subjects.llama_cpp import RECORDING, open_llama_cpp
from apr_falsify.subjects.llama_cpp.settings import SETTINGS as LLAMA_CPP_SETTINGS
from apr_falsify.subjects.recorded import SETTINGS as RECORDED_SETTINGS
from apr_falsify.subjects.recorded import open_recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEntry:
    """One runtime.

    Attributes:
        open: opens a subject of this runtime.
        path: what its PATH is.
        what: one line for people.
        holds_model: whether the oracle can run what lies at PATH.
        recording: how a PATH ends that is a recording all the same.
        settings: what ``--subject-option`` may set.

    """

    open: Runtime
    path: str
    what: str
    holds_model: bool = False
    recording: str | None = None
    settings: Mapping[str, RuntimeSetting] = field(default_factory=dict)


RUNTIMES: Mapping[str, RuntimeEntry] = {
    "apr": RuntimeEntry(
        open=open_apr,
        path="MODEL.apr, HF_DIR or MODEL.gguf",
        what="the real apr binary",
        holds_model=True,
    ),
    "embedded": RuntimeEntry(
        open=open_embedded,
        path="HF_DIR or MODEL.gguf",
        what="the NumPy decoder of this package",
        holds_model=True,
    ),
    "llama-cpp": RuntimeEntry(
        open=open_llama_cpp,
        path="MODEL.gguf or CAPTURE.npz",
        what="llama.cpp through llama-cpp-python, or a raw capture of its graph",
        holds_model=True,
        recording=RECORDING,
        settings=LLAMA_CPP_SETTINGS,
    ),
    "recorded": RuntimeEntry(
        open=open_recorded,
        path="DIRECTORY|FILE",
        what="a trace from elsewhere: with trace.json, as apr leaves it, or any arrays with a MAPPING.yaml",
        settings=RECORDED_SETTINGS,
    ),
}
"""Name -> runtime, for ``RUNTIME:PATH``."""


def open_subject(runtime: str, target: Target) -> Subject:
    """Return the subject of ``runtime`` at ``target``.

    Raises:
        UsageError: no runtime has that name, or it has not such a setting.

    """
    try:
        entry = RUNTIMES[runtime]
    except KeyError:
        raise UsageError(
            f"unknown runtime {runtime!r}",
            expected=", ".join(f"{name}:{row.path}" for name, row in RUNTIMES.items()),
            remedy=nearest(runtime, RUNTIMES),
        ) from None
    read_options(target.options, entry.settings, runtime)
    return entry.open(target)
