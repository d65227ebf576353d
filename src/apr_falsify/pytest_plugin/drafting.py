"""From a judged falsifier to its bundle: what the session knows, put into the words of ``evidence.facts``."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_falsify.commands.lanes import Lane
from apr_falsify.contracts.claim import Claim
from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.facts import EMBEDDED_LANE, TOOL, Bound, Facts, LaneFacts, Side, Sources
from apr_falsify.evidence.outcome import Ended, SeenRun
from apr_falsify.portable import id_of, portable_path, portable_text
from apr_falsify.pytest_plugin.sources import code_of, refuse_other_code, sources_of
from apr_falsify.pytest_plugin.state import Work

if TYPE_CHECKING:
    from apr_falsify.evidence.bundle import Draft
    from apr_falsify.pytest_plugin.records import TestVerdict
    from apr_falsify.symbols.digest import Project
    from apr_falsify.traces.provenance import Provenance
    from apr_falsify.traces.trace import Trace

_LIBRARIES = (
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "pytest",
    "pytest-xdist",
    "hypothesis",
)
"""Whose versions a bundle tells."""


def draft_of(verdict: TestVerdict, facts: Facts, work: Work) -> Draft:
    """Return what the bundle of a falsifier is made of.

    Raises:
        AprFalsifyError: a trace of this session cannot be read again.

    """
    from apr_falsify.evidence.bundle import Draft
    from apr_falsify.evidence.junit import junit_xml

    properties = {
        name: [(key, portable_text(value)) for key, value in ran.properties]
        for name, ran in verdict.ran.items()
    }
    measured = _measured(verdict, work)
    oracle, subject = (None, None) if measured is None else _traces(measured, work)
    return Draft(
        facts=facts,
        bisection=None if measured is None else _read(work.measurements.run_of(measured) / "bisection.json"),
        oracle=oracle,
        subject=subject,
        controls=_named_apart(_controls(verdict, work, measured)),
        junit=junit_xml(facts.tests, suite=facts.falsifier, created=facts.created, properties=properties),
    )


def facts_of(verdict: TestVerdict, work: Work) -> Facts:
    """Return what the bundle of a falsifier says of itself.

    Raises:
        AprFalsifyError: a trace of this session cannot be read again, or the claim cannot be bound.

    """
    from apr_falsify.traces.provenance import utc_now

    claim, root = verdict.claim, work.options.root
    bound = _bound(claim, root)
    return Facts(
        falsifier=claim.falsifier,
        contract=claim.contract,
        contract_version=claim.version,
        contract_path=portable_path(str(claim.path.resolve()), root.resolve()),
        claim=claim.fields,
        claim_sha256=claim.sha256,
        outcome=verdict.outcome,
        tests=verdict.tests,
        lane=_lane_facts(verdict, work),
        bound=bound,
        sources=_sources(work, bound),
        environment=_environment(),
        created=utc_now(),
        tool=TOOL,
    )


def _bound(claim: Claim, root: Path) -> Bound:
    from apr_falsify.evidence.binding import binding_of

    return binding_of(claim, root, _project(root))


@cache
def _project(root: Path) -> Project:
    from apr_falsify.symbols.digest import Project

    return Project(root)


def forget() -> None:
    """Have the project read anew: since an earlier session of this process it may have changed."""
    _project.cache_clear()
    sources_of.cache_clear()


def _measured(verdict: TestVerdict, work: Work) -> Lane | None:
    """Return the lane that the falsifier's tests measured; of two the session's own."""
    measured = {word for ran in verdict.ran.values() for word in ran.measured}
    lanes = [work.options.lane] if measured & {SeenRun.ORACLE, SeenRun.SUBJECT} else []
    lanes += [Lane()] if SeenRun.EMBEDDED in measured else []
    there = (one for one in lanes if (work.measurements.run_of(one) / "bisection.json").exists())
    return next(there, None)


def _lane_facts(verdict: TestVerdict, work: Work) -> LaneFacts:
    lane = _measured(verdict, work)
    if lane is None:
        return LaneFacts(name=EMBEDDED_LANE)
    from apr_falsify.commands.specs import is_recording, split_subject
    from apr_falsify.traces.trace import is_trace

    oracle, subject = _traces(lane, work)
    recorded_oracle = lane.oracle is not None and is_trace(Path(lane.oracle))
    recorded_subject = lane.subject is not None and is_recording(*split_subject(lane.subject))
    return LaneFacts(
        name=lane.name,
        prompt=subject.provenance.prompt,
        tokens=subject.tokens,
        layers=subject.provenance.layers,
        oracle=_side(oracle.provenance, lane.oracle, recorded=recorded_oracle),
        subject=_side(subject.provenance, lane.subject, recorded=recorded_subject),
    )


def _side(found: Provenance, named: str | None, *, recorded: bool) -> Side:
    """Return a side as it was captured; a model of the hub goes by its id, its trace tells the revision."""
    return Side(
        runtime=found.runtime,
        version=found.version,
        device=found.device,
        dtype=found.dtype,
        model=(named and id_of(named)) or id_of(found.model) or found.model,
        model_sha256=found.model_sha256,
        binary_sha256=found.binary_sha256,
        recorded=recorded,
    )


def _traces(lane: Lane, work: Work) -> tuple[Trace, Trace]:
    """Read both traces of a lane; an oracle that was given as a trace lies where it was."""
    from apr_falsify.traces.trace import read_trace

    run = work.measurements.run_of(lane)
    oracle = run / "oracle"
    if not oracle.exists() and lane.oracle is not None:
        oracle = Path(lane.oracle)
    return read_trace(oracle), read_trace(run / "subject")


def kinds_of(verdict: TestVerdict, work: Work) -> dict[str, str]:
    """Return the kind of each bisection that the bundle of a falsifier holds, by its file there."""
    from apr_falsify.evidence.files import BISECTION

    measured = _measured(verdict, work)
    controls = _named_apart(_controls(verdict, work, measured))
    found = {f"controls/{name}/{BISECTION}": str(one["kind"]) for name, one in controls.items()}
    if measured is not None:
        found[BISECTION] = str(_read(work.measurements.run_of(measured) / BISECTION)["kind"])
    return found


def _controls(
    verdict: TestVerdict, work: Work, measured: Lane | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    embedded = work.measurements.run_of(Lane()) / "bisection.json"
    if measured is not None and measured.is_live and embedded.exists():
        yield "embedded-default", _read(embedded)
    for ran in verdict.ran.values():
        for name, path in sorted(ran.kept.items()):
            yield name, _read(Path(path))


def _named_apart(found: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """Return ``found`` by name; of several of one name each but the first gets a number."""
    named: dict[str, Mapping[str, Any]] = {}
    for name, bisection in found:
        numbers = (f"{name}-{number}" for number in itertools.count(2))
        named[next(one for one in itertools.chain([name], numbers) if one not in named)] = bisection
    return named


def _read(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _sources(work: Work, bound: Bound) -> Sources:
    options = work.options
    outputs = tuple(one.resolve() for one in (options.evidence_dir, options.bundles) if one is not None)
    root = options.root.resolve()
    code = code_of((name.partition("::")[0] for name in bound.functions), root)
    return sources_of(root, options.project, outputs, code)


@cache
def _environment() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def leave_bundle(verdict: TestVerdict, facts: Facts, work: Work) -> tuple[Path | None, str]:
    """Write the bundle of a falsifier that was run; return where, and its statement's sha256.

    One that was selected in part, or of which nothing was started, leaves none, and one that did not finish
    leaves none where one is: it would take the place of better evidence.

    Raises:
        AprFalsifyError: it cannot be made or written, or the code that ran is not what it would bind.

    """
    folder = work.options.evidence_dir
    if folder is None or not verdict.is_whole or not verdict.has_started:
        return None, ""
    from apr_falsify.evidence.bundle import write_bundle

    path = folder / _folder_of(verdict.claim)
    if path.exists() and any(one.ended is Ended.UNFINISHED for one in verdict.tests):
        return None, ""
    files = (name.partition("::")[0] for name in facts.bound.functions)
    refuse_other_code(files, _project(work.options.root), work.started_ns, work.shared.imported())
    return path, write_bundle(draft_of(verdict, facts, work), path)


def _folder_of(claim: Claim) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", claim.falsifier):
        raise EvidenceError(
            f"the id {claim.falsifier!r} names no folder",
            where=claim.path,
            expected="letters, digits, dots and dashes",
        )
    return claim.falsifier
