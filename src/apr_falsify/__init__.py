"""apr-falsify: name the stage of an LLM forward pass that introduced the error.

The names below are the public API (:mod:`apr_falsify.api`), loaded when one is first used; ``docs/python.md``
shows them at work. Every other module is private, and may change without notice.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_falsify.api import (
        AprFalsifyError,
        Bisection,
        Falsified,
        Finding,
        FindingType,
        Key,
        Kind,
        Layout,
        Model,
        Recorder,
        Row,
        StageArray,
        Status,
        Trace,
        Verdict,
        assert_one_source,
        bisect,
        capture,
        open_model,
        read_trace,
        record,
    )

__version__ = "0.1.0"

__all__ = [
    "AprFalsifyError",
    "Bisection",
    "Falsified",
    "Finding",
    "FindingType",
    "Key",
    "Kind",
    "Layout",
    "Model",
    "Recorder",
    "Row",
    "StageArray",
    "Status",
    "Trace",
    "Verdict",
    "__version__",
    "assert_one_source",
    "bisect",
    "capture",
    "open_model",
    "read_trace",
    "record",
]


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in __all__:
        raise AttributeError(f"module 'apr_falsify' has no attribute {name!r}")
    from apr_falsify import api

    value = globals()[name] = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
