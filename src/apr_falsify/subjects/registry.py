"""The runtimes that can be a subject: one line each. What opens a runtime is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apr_falsify.errors import UsageError, nearest
from apr_falsify.subjects.interface import Runtime, RuntimeSetting, Subject, Target, read_options

Settings = Mapping[str, RuntimeSetting]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEntry:
    """One runtime.

    Attributes:
        open: opens a subject of this runtime.
        path: what its PATH is.
        what: one line for people.
        holds_model: whether the oracle can run what lies at PATH.
        recording: how a PATH ends that is a recording all the same.
        settings: gives what ``--subject-option`` may set.

    """

    open: Runtime
    path: str
    what: str
    holds_model: bool = False
    recording: str | None = None
    settings: Callable[[], Settings] = dict


def _open_apr(target: Target) -> Subject:
    from apr_falsify.subjects.apr import open_apr

    return open_apr(target)


def _open_embedded(target: Target) -> Subject:
    from apr_falsify.subjects.embedded import open_embedded

    return open_embedded(target)


def _open_llama_cpp(target: Target) -> Subject:
    from apr_falsify.subjects.llama_cpp import open_llama_cpp

    return open_llama_cpp(target)


def _llama_cpp_settings() -> Settings:
    from apr_falsify.subjects.llama_cpp.settings import SETTINGS

    return SETTINGS


def _open_recorded(target: Target) -> Subject:
    from apr_falsify.subjects.recorded import open_recorded

    return open_recorded(target)


def _recorded_settings() -> Settings:
    from apr_falsify.subjects.recorded import SETTINGS

    return SETTINGS


RUNTIMES: Mapping[str, RuntimeEntry] = {
    "apr": RuntimeEntry(
        open=_open_apr,
        path="MODEL.apr, HF_DIR or MODEL.gguf",
        what="the real apr binary",
        holds_model=True,
    ),
    "embedded": RuntimeEntry(
        open=_open_embedded,
        path="HF_DIR or MODEL.gguf",
        what="the NumPy decoder of this package",
        holds_model=True,
    ),
    "llama-cpp": RuntimeEntry(
        open=_open_llama_cpp,
        path="MODEL.gguf or CAPTURE.npz",
        what="llama.cpp through llama-cpp-python, or a raw capture of its graph",
        holds_model=True,
        recording=".npz",
        settings=_llama_cpp_settings,
    ),
    "recorded": RuntimeEntry(
        open=_open_recorded,
        path="DIRECTORY|FILE",
        what="a run from elsewhere: a trace, what apr or apr_falsify.record leaves, or any arrays",
        settings=_recorded_settings,
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
    read_options(target.options, entry.settings(), runtime)
    return entry.open(target)
