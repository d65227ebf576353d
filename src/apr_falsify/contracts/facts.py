"""What is kept of a contract once its document is put away: enough for every rule across contracts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apr_falsify.contracts.bindings import (
    binding_citations,
    binding_problems,
    bound_contracts,
    bound_equations,
    is_registry,
)
from apr_falsify.contracts.cited import all_cited
from apr_falsify.contracts.evidence_keys import LIVE, keys_read_as
from apr_falsify.contracts.model import (
    FALSIFIER_BLOCKS,
    BoundEquation,
    Citation,
    CitedId,
    Contract,
    Sibling,
    entries,
    read_contract,
    text_of,
)
from apr_falsify.contracts.problem import Place, Problem
from apr_falsify.contracts.source import Mapping, Value, parse
from apr_falsify.contracts.statuses import rung_of
from apr_falsify.symbols.states import quickly_pickled


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class FalsifierFacts:
    """One falsifier's identity and status.

    ``rung`` is empty where its word claims no rung. ``bundle`` is the path of the one it names; ``is_live``
    says that it names the record of a live run instead, ``is_rust`` that cargo alone runs its tests.
    """

    id: str
    place: Place
    status: str
    rung: str
    bundle: str = ""
    is_live: bool = False
    is_rust: bool = False


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """One file's facts. ``is_contract`` is false for an empty file, a list, a broken one."""

    path: str
    is_contract: bool = False
    id: str = ""
    id_place: Place | None = None
    aliases: tuple[str, ...] = ()
    version: str = ""
    status: str = ""
    falsifiers: tuple[FalsifierFacts, ...] = ()
    siblings: tuple[Sibling, ...] = ()
    citations: tuple[Citation, ...] = ()
    problems: tuple[Problem, ...] = ()
    ids: tuple[str, ...] = ()
    cited_ids: tuple[CitedId, ...] = ()
    cited_obligations: tuple[CitedId, ...] = ()
    bindings: int = 0  # of a registry of bindings, which is no contract
    equations: tuple[str, ...] = ()
    bound: tuple[BoundEquation, ...] = ()


def gather(path: str, raw: bytes) -> ContractFacts:
    """Read one file and apply every rule that needs nothing but the file itself."""
    from apr_falsify.contracts.rules import contract_rules
    from apr_falsify.contracts.rules.ids import cited_ids, cited_obligations, registered_ids
    from apr_falsify.contracts.rules.shape import schema_violation
    from apr_falsify.contracts.schema import accepts

    source = parse(path, raw)
    if not isinstance(source.data, Mapping):
        return ContractFacts(
            path=path,
            problems=(*source.problems, *_no_mapping(source.path, source.data, raw, source.problems)),
        )
    if is_registry(source.data):
        return ContractFacts(
            path=path,
            bindings=len(source.data["bindings"] or ()),
            citations=tuple(binding_citations(source.data)),
            siblings=tuple(bound_contracts(source.data)),
            bound=tuple(bound_equations(source.data)),
            problems=(*source.problems, *binding_problems(path, source.data)),
        )
    contract = read_contract(path, source.data)
    if not contract.falsifiers and not _claims_to_be_one(source.data):
        return ContractFacts(path=path, problems=source.problems)  # data of another kind beside the contracts
    violations = () if accepts(source.data) else tuple(schema_violation(contract))
    cited = tuple(all_cited(contract))
    found = [problem for check in contract_rules() for problem in check(contract)]
    return ContractFacts(
        path=path,
        is_contract=True,
        id=contract.id,
        id_place=_id_place(contract),
        aliases=contract.aliases,
        version=contract.version,
        status=contract.status,
        falsifiers=tuple(_falsifier_facts(contract, cited)),
        siblings=contract.siblings,
        citations=cited,
        problems=(*source.problems, *violations, *found),
        ids=registered_ids(contract),
        equations=_equations(contract.data.get("equations")),
        cited_ids=tuple(cited_ids(contract)),
        cited_obligations=tuple(cited_obligations(contract)),
    )


def _equations(block: Value) -> tuple[str, ...]:
    """Names of a contract's equations: keys of a mapping, names or ids in a list."""
    if isinstance(block, Mapping):
        return tuple(map(str, block))
    items = [item for _, item in entries(block, "") if isinstance(item, Mapping)]
    return tuple(name for item in items for key in ("id", "name") if (name := text_of(item, key)))


def _claims_to_be_one(data: Mapping) -> bool:
    return any(key in data for key in ("metadata", "contract", "proof_obligations", *FALSIFIER_BLOCKS))


def _no_mapping(path: str, data: object, raw: bytes, before: tuple[Problem, ...]) -> list[Problem]:
    if any(problem.code != "byte-order-mark" for problem in before):
        return []
    if data is None:
        return [Problem(code="empty-document", path=path, line=1, column=1, message="holds no data")]
    message = "is a list or a scalar at the top, not a contract"
    return [Problem(code="not-a-mapping", path=path, line=1, column=1, message=message)]


def _id_place(contract: Contract) -> Place | None:
    from apr_falsify.contracts.model import place_of
    from apr_falsify.contracts.source import Text

    for holder, prefix in ((contract.metadata, "metadata."), (contract.data, "")):
        for key in ("id", "contract"):
            value = holder.get(key)
            if isinstance(value, Text) and value == contract.id:
                return place_of(value, prefix + key)
    return None


def _falsifier_facts(contract: Contract, cited: Sequence[Citation]) -> Iterator[FalsifierFacts]:
    for one in contract.falsifiers:
        evidence = one.data.get("evidence")
        own = [each for each in cited if f"{each.place.key}.".startswith(f"{one.place.key}.")]
        live = [f"{one.place.key}.{key}" for key in keys_read_as(LIVE)]
        yield FalsifierFacts(
            id=one.id,
            place=one.place,
            status=one.status,
            rung=rung_of(one.status) or "",
            bundle=text_of(evidence, "bundle") if isinstance(evidence, Mapping) else "",
            is_live=any(each.kind != "prose" and each.place.key.startswith(tuple(live)) for each in own),
            is_rust=_runs_in_cargo(own),
        )


def _runs_in_cargo(cited: Sequence[Citation]) -> bool:
    """Whether the tests that are cited are Rust's, and none is pytest's."""
    kinds = {each.kind for each in cited}
    files = {path.path for each in cited for path in each.paths}
    rust = "cargo" in kinds or any(file.endswith(".rs") for file in files)
    return (
        rust
        and not kinds & {"pytest", "marker", "unittest"}
        and not any(one.endswith(".py") for one in files)
    )
