"""Rules across contracts: unique ids, and siblings that are there and are what they are cited as."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Sequence

from apr_falsify.contracts.facts import ContractFacts
from apr_falsify.contracts.model import CitedId, Sibling
from apr_falsify.contracts.problem import Problem, problem_at
from apr_falsify.contracts.rules.shape import version_key
from apr_falsify.contracts.statuses import LADDER, is_unbuilt, root_of, rung_of, weakest
from apr_falsify.errors import nearest


def duplicate_falsifier_id(suite: Sequence[ContractFacts]) -> Iterator[Problem]:
    """A falsifier's id is its own, in all contracts."""
    first: dict[str, tuple[str, int]] = {}
    for facts in suite:
        for one in facts.falsifiers:
            if not one.id:
                continue
            if one.id in first:
                path, line = first[one.id]
                message = f"falsifier id {one.id!r} is taken"
                hint = f"by {path}:{line}" if path != facts.path else f"in this file, line {line}"
                yield problem_at(
                    facts.path, "duplicate-falsifier-id", one.place, message, subject=one.id, hint=hint
                )
            else:
                first[one.id] = (facts.path, one.place.line)


def duplicate_contract_id(suite: Sequence[ContractFacts]) -> Iterator[Problem]:
    """A contract's id, where it gives one, is its own."""
    first: dict[str, str] = {}
    for facts in suite:
        if facts.id_place is None:
            continue
        if facts.id in first:
            message = f"contract id {facts.id!r} is taken"
            yield problem_at(
                facts.path,
                "duplicate-contract-id",
                facts.id_place,
                message,
                subject=facts.id,
                hint=f"by {first[facts.id]}",
            )
        first.setdefault(facts.id, facts.path)


def unregistered_id(suite: Sequence[ContractFacts], known: Sequence[ContractFacts]) -> Iterator[Problem]:
    """What a changelog, a note or a harness cites by its id is an entry of some contract."""
    by_id: dict[str, ContractFacts] = {}
    for facts in (*suite, *known):
        for one in facts.ids:
            by_id.setdefault(one, facts)
    for facts in suite:
        for cited in facts.cited_ids:
            if cited.id not in by_id:
                message = f"{cited.id} is cited, and no contract registers it"
                hint = nearest(cited.id, [one.id for one in facts.falsifiers]) or "register it, or remove it"
                yield problem_at(
                    facts.path, "id-not-registered", cited.place, message, subject=cited.id, hint=hint
                )
        for cited in facts.cited_obligations:
            yield from _obligation(facts, cited, by_id)


def _obligation(facts: ContractFacts, cited: CitedId, by_id: dict[str, ContractFacts]) -> Iterator[Problem]:
    other = by_id.get(cited.id)
    relied_on = {one.name for one in facts.siblings}
    if other is not None and (other.path == facts.path or relied_on & set(other.aliases)):
        return
    hint = f"it is an obligation of {other.path}" if other else nearest(cited.id, facts.ids)
    message = f"{cited.id} is no obligation of this contract"
    yield problem_at(facts.path, "obligation-not-found", cited.place, message, subject=cited.id, hint=hint)


def _is_contract_name(name: str) -> bool:
    return bool(re.search(r"-v\d+$|^C-[A-Z]", name))


Owns = Callable[[str], bool]


def siblings(
    suite: Sequence[ContractFacts], known: Sequence[ContractFacts], owns: Owns, given: Collection[str] = ()
) -> Iterator[Problem]:
    """Each cited sibling is there, and is at least of the version and status it is cited at.

    ``known`` are all contracts that can be cited, also those that are not themselves validated now;
    ``owns`` says whether the project a contract is of is there, so that what is missing is missing; ``given``
    are the names of the sources, for those that are said to be of another repository.
    """
    by_name = {alias: facts for facts in (*known, *suite) for alias in facts.aliases if facts.is_contract}
    for facts in suite:
        for sibling in facts.siblings:
            other = by_name.get(sibling.name)
            if other is None:
                yield from _absent(facts, sibling, by_name, owns(facts.path), given)
            elif other.path != facts.path:
                yield from _older(facts, sibling, other)


def unbound_equation(suite: Sequence[ContractFacts], known: Sequence[ContractFacts]) -> Iterator[Problem]:
    """An equation that a registry binds is one of its contract's."""
    by_name = {alias: facts for facts in (*known, *suite) for alias in facts.aliases if facts.is_contract}
    for facts in suite:
        for one in facts.bound:
            other = by_name.get(one.contract)
            if other is None or not other.equations or one.equation in other.equations:
                continue
            message = f"{one.contract} has no equation {one.equation!r}"
            hint = nearest(one.equation, other.equations) or f"see {other.path}"
            yield problem_at(
                facts.path, "reference-missing", one.place, message, subject=one.equation, hint=hint
            )


def _absent(
    facts: ContractFacts,
    sibling: Sibling,
    by_name: dict[str, ContractFacts],
    is_owned: bool,
    given: Collection[str],
) -> Iterator[Problem]:
    others = [name for name, other in by_name.items() if other.path != facts.path]
    hint = _alike(sibling.name, others)
    if not _is_contract_name(sibling.name) and not difflib.get_close_matches(sibling.name, others, 1, 0.85):
        return  # a library, a crate, a tool: `depends_on` is used for these too
    message = f"contract {sibling.name!r} is not among the contracts"
    if sibling.origin and sibling.origin not in given:
        is_owned, hint = False, f"it is of another repository: --source {sibling.origin}=DIR"
    if is_owned:
        hint = hint or f"if it is of another repository: REPOSITORY:{sibling.name}"
        code = "sibling-missing" if sibling.must_exist else "reference-missing"
        yield problem_at(facts.path, code, sibling.place, message, subject=sibling.name, hint=hint)
    else:
        yield problem_at(
            facts.path, "unresolved-sibling", sibling.place, message, subject=sibling.name, hint=hint
        )


def _alike(name: str, others: Sequence[str]) -> str:
    """Offer the contract that may be meant: a near spelling, without the version that many names share."""
    bare = {_VERSION.sub("", one): one for one in others}
    near = difflib.get_close_matches(_VERSION.sub("", name), list(bare), 1, 0.8)
    return f"did you mean {bare[near[0]]!r}?" if near else ""


_VERSION = re.compile(r"-v\d+$")


def _older(facts: ContractFacts, sibling: Sibling, other: ContractFacts) -> Iterator[Problem]:
    if sibling.version and other.version and version_key(other.version) < version_key(sibling.version):
        message = f"{sibling.name} is cited at {sibling.version} and is at {other.version}"
        yield problem_at(
            facts.path,
            "sibling-version",
            sibling.place,
            message,
            subject=sibling.name,
            hint=f"see {other.path}",
        )
    cited = rung_of(sibling.status)
    actual = actual_status(other)
    if cited and actual and _rank(actual) < _rank(cited):
        message = f"{sibling.name} is cited as {sibling.status} and is {actual}"
        yield problem_at(
            facts.path,
            "sibling-status",
            sibling.place,
            message,
            subject=sibling.name,
            hint=f"see {other.path}",
        )


def actual_status(facts: ContractFacts) -> str:
    """The rung a contract really stands on: its weakest falsifier's, or that it is only proposed."""
    if is_unbuilt(facts.status):
        return root_of(facts.status)
    rungs = [one.rung for one in facts.falsifiers if one.rung]
    return weakest(rungs) if rungs else (rung_of(facts.status) or "")


def _rank(status: str) -> int:
    rung = rung_of(status)
    return LADDER.index(rung) if rung in LADDER else -1
