"""What differs between two bundles: the claim, the code, what was run, its outcome, each figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apr_falsify.evidence.bundle import Bundle
from apr_falsify.evidence.facts import Side
from apr_falsify.evidence.outcome import HOLLOW

SCHEMA = "apr-falsify/evidence-difference/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleChange:
    """One thing in which two bundles differ.

    Attributes:
        about: the group it belongs to: ``claim``, ``code``, ``run``, ``outcome``, ``tests``, ``figures``.
        name: what it is.
        before: its value in the first bundle, ``None`` where that has none.
        after: its value in the second.

    """

    about: str
    name: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


def differences(first: Bundle, second: Bundle) -> tuple[BundleChange, ...]:
    """Return in what two bundles differ; the time they were made is no difference."""
    return tuple(
        BundleChange(about=about, name=name, before=before.get(name), after=after.get(name))
        for about, read in _GROUPS.items()
        for before, after in [(dict(read(first)), dict(read(second)))]
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


Named = Iterator[tuple[str, Any]]


def _claim(bundle: Bundle) -> Named:
    facts = bundle.facts
    yield "falsifier", facts.falsifier
    yield "contract", facts.contract
    yield from facts.claim.items()


def _code(bundle: Bundle) -> Named:
    yield from bundle.facts.bound.functions.items()
    yield from ((f"not bound: {name}", why) for name, why in bundle.facts.bound.unbound.items())


def _run(bundle: Bundle) -> Named:
    facts = bundle.facts
    yield "project", facts.sources.project
    yield "lane", facts.lane.name
    yield "prompt", facts.lane.prompt
    yield "tokens", list(facts.lane.tokens)
    yield "layers", None if facts.lane.layers is None else list(facts.lane.layers)
    for name, side in (("oracle", facts.lane.oracle), ("subject", facts.lane.subject)):
        yield from _side(name, side)
    yield "tool", facts.tool
    yield from facts.environment.items()


def _side(name: str, side: Side | None) -> Named:
    for key, value in ({} if side is None else asdict(side)).items():
        yield f"{name} {key.replace('_', ' ')}", value


def _outcome(bundle: Bundle) -> Named:
    yield "result", bundle.facts.outcome.result.value
    yield "reason", bundle.facts.outcome.reason
    if bundle.bisection is not None:
        yield "bisection", bundle.bisection.get("kind")


def _tests(bundle: Bundle) -> Named:
    for one in bundle.facts.tests:
        yield one.name, f"{one.ended} ({one.role}, {one.level})" + (f": {HOLLOW}" if one.is_hollow else "")


_FIGURES = ("cosine", "rel_l2", "norm_ratio", "max_abs")


def _figures(bundle: Bundle) -> Named:
    for row in (bundle.bisection or {}).get("stages", ()):
        layer = row.get("layer")
        stage = row.get("stage") if layer is None else f"layer {layer} {row.get('stage')}"
        yield f"{stage} verdict", row.get("verdict")
        for group in ("accumulated", "introduced"):
            found: Mapping[str, Any] = row.get(group) or {}
            yield from ((f"{stage} {group} {name}", found.get(name)) for name in _FIGURES if name in found)
        yield from ((f"{stage} {name}", row.get(name)) for name in ("residual", "floor", "arithmetic"))


_GROUPS = {
    "claim": _claim,
    "code": _code,
    "run": _run,
    "outcome": _outcome,
    "tests": _tests,
    "figures": _figures,
}
"""What is compared, group by group."""
