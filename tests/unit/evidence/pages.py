"""Bisections of every kind for tests of the page, made by comparing real and spoiled traces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.subjects.embedded import capture
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.support import DATA
from tests.unit.helpers import TINY

Array = npt.NDArray[Any]
TOKENS = (274, 272, 223, 20, 13, 20, 33)
APR_TOKENS = (274, 272, 332, 13, 20, 33)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One bisection as JSON, and the two traces that were compared."""

    bisection: dict[str, Any]
    oracle: Trace
    subject: Trace

    @property
    def traces(self) -> tuple[Trace, Trace]:
        return self.oracle, self.subject


@cache
def tiny() -> Model:
    return open_model(TINY)


@cache
def right(tokens: tuple[int, ...] = TOKENS, layers: int = 1) -> Trace:
    """A correct run of the tiny checkpoint."""
    request = Request(tokens=tokens, layers=range(layers), stages=tuple(STAGES))
    return capture(tiny(), request, MemorySink(), dtype="f32")


def changed(trace: Trace, key: Key, change: Callable[[Array], Array], *layout: Layout) -> Trace:
    """Return ``trace`` with one stage made anew; what is computed from it stays as it was."""
    old = trace.stages[key]
    new = StageArray(data=change(np.array(old.data)), layout=layout or old.layout)
    return replace(trace, stages={**trace.stages, key: new})


def without(trace: Trace, *names: str) -> Trace:
    return replace(trace, stages={key: value for key, value in trace.stages.items() if key[1] not in names})


def case(oracle: Trace, subject: Trace, **options: Any) -> Case:
    found = bisect(oracle, subject, **{"weights": tiny().weights, **options}).to_json()
    return Case(bisection=found, oracle=oracle, subject=subject)


def recorded(name: str) -> Case:
    """A recording of the real apr against a correct run of three layers."""
    target = Target(path=DATA / "apr-tiny-qwen2" / name, model=tiny(), tokens=APR_TOKENS)
    subject = open_recorded(target).capture(
        Request(tokens=APR_TOKENS, layers=range(1), stages=()), MemorySink()
    )
    return case(right(APR_TOKENS, 3), subject)


def with_one(value: float) -> Callable[[Array], Array]:
    """Return what puts ``value`` into the first place of an array."""

    def change(data: Array) -> Array:
        data.reshape(-1)[0] = value
        return data

    return change


def head_major(data: Array) -> Array:
    """[S, heads * 32] -> [heads, S, 32], which is how the tiny checkpoint's q and k may be stored."""
    return np.ascontiguousarray(data.reshape(len(data), -1, 32).swapaxes(0, 1)).reshape(data.shape)


def _several() -> Case:
    subject = changed(right(), Key(0, "attn_scores"), lambda x: x * np.float32(2))
    return case(right(), changed(subject, Key(0, "ffn_gate"), lambda x: x * np.float32(1.5)))


def _tokenizer() -> Case:
    finding = Finding(type=FindingType.TOKENIZER, explanation="the ids differ", advice="look at the merges")
    return case(right(), right(), findings=(finding,))


CASES: dict[str, Callable[[], Case]] = {
    "consistent": lambda: case(right(), right()),
    "tokenizer": _tokenizer,
    "localised": lambda: recorded("k-bias-zero"),
    "several": _several,
    "layout-mismatch": lambda: case(
        right(),
        changed(changed(right(), Key(0, "q_post_rope"), head_major), Key(0, "k_post_rope"), head_major),
    ),
    "reference-suspect": lambda: case(
        changed(right(), Key(0, "attn_norm"), lambda x: x * np.float32(1.1)), right()
    ),
    "one-token": lambda: case(right((5,)), right((5,))),
    "nan": lambda: case(right(), changed(right(), Key(0, "ffn_up"), with_one(np.nan))),
    "missing": lambda: case(right(), without(right(), "attn_scores", "ffn_silu")),
}
"""Name -> one bisection of each kind that a page must tell."""


@cache
def made(name: str) -> Case:
    return CASES[name]()


def hostile(bisection: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a copy in which every text from outside is ``text``."""
    spoiled = copy.deepcopy(bisection)
    for side in ("oracle", "subject"):
        for name in ("runtime", "version", "model", "prompt", "driver", "commit", "device"):
            spoiled[side][name] = text
        spoiled[side]["settings"] = {text: text}
        spoiled[side]["argmax"] = {"id": 1, "text": text}
    for row in spoiled["stages"]:
        row["arithmetic"] = text
    spoiled["stages"][0]["stage"] = text
    for finding in spoiled["findings"]:
        finding.update(explanation=text, stages=[text], cause={"name": text, "says": text}, **{"try": text})
    spoiled["not_checked"] = [text]
    return spoiled


class Page(HTMLParser):
    """What a browser finds in a page: tags, attributes, and the texts of some elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in _TOLD:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.texts[tag][-1] += data

    def __getitem__(self, tag: str) -> list[str]:
        """The texts of the elements ``tag``, blanks made one."""
        return [" ".join(each.split()) for each in self.texts.get(tag, [])]


_TOLD = ("h1", "h2", "h3", "p", "li", "title", "desc", "pre", "summary", "dd", "caption")
