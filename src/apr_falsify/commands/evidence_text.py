"""What ``apr-falsify evidence`` prints for people, 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from apr_falsify.commands.output import wrapped
from apr_falsify.evidence.facts import Facts, Side
from apr_falsify.evidence.files import REPORT
from apr_falsify.evidence.outcome import outcome_of
from apr_falsify.evidence.verify import Verification

if TYPE_CHECKING:
    from apr_falsify.evidence.bundle import Bundle
    from apr_falsify.evidence.difference import BundleChange

MOST = 8
"""How many of a list are printed; JSON has them all."""

_UNPINNED = (
    "nothing pins it: whoever can change the files can change the statement with them. "
    "No FUNCTIONAL rests on it. Give the digest that was reviewed with --expect, the contract with "
    "--contract, or a key with --key."
)


def verification_lines(found: Verification, standing: Sequence[str] = ()) -> Iterator[str]:
    """Say what verifying one bundle showed; ``standing`` is what the contract's claim says of it."""
    yield from _wrapped(f"{found.path}: {_headline(found)}", "")
    if found.facts is not None:
        yield from _about(found.facts)
    for problem in found.problems[:MOST]:
        yield from _wrapped(f"{problem.code}: {problem.file or 'the bundle'} {problem.message}", "  ! ")
    yield from _more(len(found.problems), "problems")
    if found.holds and found.state == "unpinned":
        yield from _wrapped(_UNPINNED, "  ! ")
    for line in standing:
        yield from _wrapped(line, "  ")
    yield from _wrapped(f"statement sha256 {found.statement_sha256 or 'none'}", "  ")
    files = sum(name.endswith(": sha256") for name in found.recomputed)
    figures = [name for name in found.recomputed if not name.endswith(": sha256")]
    yield from _wrapped(f"recomputed {files} digests and {len(figures)} figures: {_some(figures)}", "  ")
    yield from _wrapped(f"attested {len(found.attested)}, not recomputed: {_some(found.attested)}", "  ")
    for line in found.not_checked or ("nothing was left out",):
        yield from _wrapped(f"not checked: {line}" if found.not_checked else line, "  ")


def _headline(found: Verification) -> str:
    if not found.holds:
        return f"DOES NOT VERIFY, {len(found.problems)} problem{'s' * (len(found.problems) != 1)}"
    if found.state == "unpinned":
        return "UNPINNED: whole and consistent, but nothing says that it is the reviewed one"
    keys = f" ({', '.join(found.signed_by)})" if found.signed_by else ""
    return f"VERIFIED, pinned by {' and '.join(found.pinned_by)}{keys}"


def _about(facts: Facts) -> Iterator[str]:
    outcome = outcome_of(facts.tests)  # what its tests give, not the words it brings along
    yield from _wrapped(f"{facts.falsifier}: {outcome.result.value}, {outcome.reason}", "  ")
    yield from _wrapped(f"lane {facts.lane.name}, made {facts.created} by {facts.tool}", "  ")


def _some(names: Sequence[str]) -> str:
    shown = "; ".join(names[:MOST]) or "nothing"
    return shown + (f"; and {len(names) - MOST} more" if len(names) > MOST else "")


def _more(count: int, what: str) -> Iterator[str]:
    if count > MOST:
        yield f"  and {count - MOST} more {what}"


def _wrapped(text: str, indent: str) -> list[str]:
    return wrapped(_printable(text), indent, " " * (len(indent) + 2))


def _printable(text: str) -> str:
    """Return a text of a bundle without the characters that could control a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def bundle_lines(bundle: Bundle) -> Iterator[str]:
    """Say what a bundle says of itself."""
    facts = bundle.facts
    yield f"{bundle.path}"
    yield from _about(facts)
    yield from _wrapped(f"contract {facts.contract} {facts.contract_version}, {facts.contract_path}", "  ")
    for name in ("rule", "prediction"):
        yield from _wrapped(f"{name}: {facts.claim.get(name, 'not stated')}", "  ")
    for side, found in (("oracle", facts.lane.oracle), ("subject", facts.lane.subject)):
        yield from _wrapped(f"{side}: {_side(found)}", "  ")
    yield f"  {len(facts.tests)} tests:"
    for one in facts.tests[:MOST]:
        reason = f": {one.remark}" if one.remark else ""
        yield from _wrapped(f"{one.ended} ({one.role}, {one.level}) {one.name}{reason}", "    ")
    yield from _more(len(facts.tests), "tests")
    yield from _code(facts)
    yield from _bisection(bundle)
    sizes = [len(data) for data in bundle.files.values()]
    yield f"  {len(sizes)} files, {sum(sizes)} bytes"
    if REPORT not in bundle.files:
        yield f"  no {REPORT}: jinja2 was not installed where it was made"


def _side(side: Side | None) -> str:
    if side is None:
        return "none; no forward pass was compared"
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in asdict(side).items() if value)


def _code(facts: Facts) -> Iterator[str]:
    sources = facts.sources
    state = f"{len(sources.uncommitted)} uncommitted files" if sources.uncommitted else "nothing uncommitted"
    yield from _wrapped(f"project {sources.project}, commit {sources.commit or 'unknown'}, {state}", "  ")
    yield from _wrapped(f"bound to {len(facts.bound.functions)} functions, classes and constants", "  ")
    for name, why in list(facts.bound.unbound.items())[:MOST]:
        yield from _wrapped(f"not bound: {name}: {why}", "    ")
    yield from _more(len(facts.bound.unbound), "not bound")


def _bisection(bundle: Bundle) -> Iterator[str]:
    if bundle.bisection is None:
        return
    kept = "their values" if bundle.traces else "digests of their values alone"
    yield from _wrapped(f"bisection: {bundle.bisection.get('kind')}; two traces, {kept}", "  ")
    if bundle.controls:
        kinds = ", ".join(f"{name} {data.get('kind')}" for name, data in bundle.controls.items())
        yield from _wrapped(f"{len(bundle.controls)} controls: {kinds}", "  ")


def difference_lines(changes: Iterable[BundleChange]) -> Iterator[str]:
    """Say in what two bundles differ, group by group."""
    groups: dict[str, list[BundleChange]] = {}
    for one in changes:
        groups.setdefault(one.about, []).append(one)
    if not groups:
        yield "the two bundles say the same"
    for about, found in groups.items():
        yield f"{about}: {len(found)} {'difference' if len(found) == 1 else 'differences'}"
        for one in found[:MOST]:
            yield from _wrapped(f"{one.name}: {_value(one.before)} -> {_value(one.after)}", "  ")
        yield from _more(len(found), "differences")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
