"""Runs of the tiny checkpoint for tests of what breaks down within a comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.model.stages import Key
from apr_falsify.traces.trace import Trace
from tests.unit.compare.spoiled import Change, request_of, spoiled_run
from tests.unit.evidence.pages import tiny

SOURCE: Key = Key(1, "ffn_out")


def run(spoils: dict[Key, Change], arithmetic: str = "f32") -> Trace:
    return spoiled_run(tiny(), request_of(tiny(), layers=2), spoils, arithmetic=arithmetic)


@cache
def right() -> Trace:
    return run({})


@cache
def doubled(*keys: Key) -> Trace:
    return run(dict.fromkeys(keys or (SOURCE,), lambda data: 2 * data))


def compared(subject: Trace, **options: Any) -> Bisection:
    return bisect(right(), subject, **{"weights": tiny().weights, **options})


def sources(result: Bisection) -> list[tuple[int | None, tuple[str, ...]]]:
    return [(finding.layer, finding.stages) for finding in result.sources]


def noisy(data: Any) -> Any:
    return data * np.random.default_rng(0).normal(1, 0.01, data.shape)


def raising(error: BaseException) -> Callable[..., Any]:
    def broken(*_: object, **__: object) -> Any:
        raise error

    return broken


def noted(result: Bisection) -> list[str]:
    return [line for line in result.not_checked if "broke down" in line]
