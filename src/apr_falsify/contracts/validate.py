"""Validating a set of contracts, in this order:

1. read each file and apply the rules that need nothing else (``facts``);
2. resolve what each cites against the trees (``resolve``);
3. apply the rules across contracts (``rules.suite``);
4. find the tests that are cited by marker (``marked``);
5. apply the rules on evidence, where the command knows its state (``rules.evidence``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from apr_falsify.contracts.bindings import resolve_binding
from apr_falsify.contracts.facts import ContractFacts, gather
from apr_falsify.contracts.files import read_bytes
from apr_falsify.contracts.hollow import hollow_problems
from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.proofs import resolve_theorem
from apr_falsify.contracts.prose import resolve_loose
from apr_falsify.contracts.report import Counts
from apr_falsify.contracts.resolution import Resolution, ResolutionState
from apr_falsify.contracts.resolve import resolve
from apr_falsify.contracts.roots import SearchScope
from apr_falsify.contracts.rules.names import name_problems, under_claimed
from apr_falsify.contracts.statuses import FUNCTIONAL


def read_facts(path: Path, shown: str) -> ContractFacts:
    """Read one file; one that cannot be read is a value with a problem."""
    raw = read_bytes(path)
    if isinstance(raw, Problem):
        return ContractFacts(path=shown, problems=(_at(raw, shown),))
    return gather(shown, raw)


def _at(problem: Problem, shown: str) -> Problem:
    return Problem(
        code=problem.code, path=shown, line=1, column=1, message=problem.message, hint=problem.hint
    )


_RESOLVERS: Mapping[str, Callable[[Citation, SearchScope], Resolution]] = {
    "binding": resolve_binding,
    "loose": resolve_loose,
    "theorem": resolve_theorem,
}
"""Kind of citation -> how it is resolved, where that is not by name alone."""


def resolve_names(facts: ContractFacts, scope: SearchScope) -> tuple[tuple[Problem, ...], Counts]:
    """Resolve all that one contract cites."""
    states = dict.fromkeys(ResolutionState, 0)
    for cited in {cited for citation in facts.citations for cited in citation.paths}:
        scope.find(cited)  # first of all: what is found tells whether the contract's own tree is there
    problems: list[Problem] = []
    outcomes: list[tuple[Citation, ResolutionState]] = []
    for citation in facts.citations:
        if citation.kind == "marker":
            continue  # rests on every test file: resolved in each run, see marked.py
        resolution = _RESOLVERS.get(citation.kind, resolve)(citation, scope)
        states[resolution.state] += 1
        problems.extend(name_problems(facts.path, citation, resolution))
        if resolution.state is ResolutionState.RESOLVED or citation.kind == "theorem":
            problems.extend(hollow_problems(facts.path, citation, scope))
        outcomes.append((citation, resolution.state))
    problems.extend(under_claimed(facts, outcomes))
    counts = Counts(
        files=1,
        contracts=int(facts.is_contract),
        falsifiers=len(facts.falsifiers),
        bindings=facts.bindings,
        resolved=states[ResolutionState.RESOLVED],
        missing=states[ResolutionState.MISSING],
        unresolved=states[ResolutionState.UNRESOLVED],
        unchecked=states[ResolutionState.UNCHECKED],
        functional=sum(one.rung == FUNCTIONAL for one in facts.falsifiers),
    )
    return tuple(dict.fromkeys(problems)), counts


def across(
    suite: Sequence[ContractFacts],
    known: Sequence[ContractFacts],
    owns: Mapping[str, bool],
    given: Collection[str] = (),
) -> Iterator[Problem]:
    """Problems that no contract has alone."""
    from apr_falsify.contracts.rules import suite as suite_rules

    yield from suite_rules.duplicate_falsifier_id(suite)
    yield from suite_rules.duplicate_contract_id(suite)
    yield from suite_rules.unregistered_id(suite, known)
    yield from suite_rules.siblings(suite, known, lambda path: owns.get(path, False), given)
    yield from suite_rules.unbound_equation(suite, known)
