"""Rules on the shape of a document: schema, blocks, versions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.model import FALSIFIER_BLOCKS, Contract, place_of, text_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.source import Text

# top-level blocks of ours and of every dialect that was met
_KNOWN_BLOCKS = frozenset(
    """
    metadata equations proof_obligations discharge verification_summary kani_harnesses qa_gate
    enforcement invariants preconditions postconditions verification description contract version
    status date kind name scope title id references depends_on siblings binds_to parent files
    type_structure constants thresholds roadmap schema changelog notes spec author created updated
    lean_theorems type_invariants domain parity_tool parity_gate implementation stages models lanes
    acceptance_criteria evidence_keys tasks bindings
    """.split()  # noqa: SIM905 - words read best as words
) | set(FALSIFIER_BLOCKS)
# those of the schema that `pv` 0.72.3 reads: contracts, pipelines, benchmarks, ontologies
_UPSTREAM_BLOCKS = frozenset(
    """
    kernel_structure simd_dispatch coq_spec requires ensures stories formula enforcement_level locked_level
    competitor demand_score intake_status lean_theorem kaizen target stages cross_boundary_obligations
    performance_contract pillar incumbent canonical_task metric direction baseline_value baseline_floor
    beat_threshold baseline_source ci_gate_name roles symbols worlds agents entity_types extractors readers
    not_expressible role_synonyms target_class roofline prefill_bound decode_bound throughput_ceiling corpora
    """.split()  # noqa: SIM905 - words read best as words
)
_SEMVER = re.compile(r"^v?\d+\.\d+\.\d+(?:[-+][\w.+-]+)?$")


def schema_violation(contract: Contract) -> Iterator[Problem]:
    """The document has the shape of the published schema."""
    from apr_falsify.contracts.schema import violations

    for place, message in violations(contract.data):
        where = place.key or "the document"
        yield problem_at(contract.path, "schema-violation", place, f"{where} {message}", subject=place.key)


def metadata_missing(contract: Contract) -> Iterator[Problem]:
    """A document with falsifiers says what it is and which version: without these nobody can cite it."""
    if not contract.falsifiers:
        return
    top = Place(line=1, column=1, key="metadata")
    if not contract.metadata and "metadata" not in contract.data:
        yield problem_at(contract.path, "metadata-missing", top, "has falsifiers and no metadata block")
    elif not contract.version:
        place = place_of(contract.metadata, "metadata") if contract.metadata else top
        yield problem_at(
            contract.path,
            "metadata-missing",
            place,
            "has falsifiers and no version",
            hint="metadata.version: '1.0.0'",
        )


def unknown_block(contract: Contract) -> Iterator[Problem]:
    """A top-level block that no known dialect has: it is read by nobody here."""
    if not contract.falsifiers and "metadata" not in contract.data:
        return  # data of another kind that happens to lie beside contracts
    for key in contract.data:
        if key not in _KNOWN_BLOCKS | _UPSTREAM_BLOCKS and isinstance(key, Text):
            place = Place(line=key.line, column=key.column, key=str(key))
            yield problem_at(
                contract.path,
                "unknown-block",
                place,
                f"top-level block {str(key)!r} is not known",
                subject=str(key),
            )


def version_not_semver(contract: Contract) -> Iterator[Problem]:
    """metadata.version is a semantic version."""
    version = contract.metadata.get("version")
    if isinstance(version, Text) and not _SEMVER.match(version):
        place = place_of(version, "metadata.version")
        yield problem_at(
            contract.path, "version-not-semver", place, f"version {str(version)!r} is not MAJOR.MINOR.PATCH"
        )


def version_disagrees(contract: Contract) -> Iterator[Problem]:
    """Where a version is given twice, the two agree; a bare ``1`` means 1.0.0."""
    top, meta = contract.data.get("version"), text_of(contract.metadata, "version")
    if isinstance(top, Text) and meta and version_key(top) != version_key(meta):
        place = place_of(top, "version")
        message = f"version is {str(top)!r} here and {meta!r} in metadata"
        yield problem_at(contract.path, "version-disagrees", place, message, subject=contract.id)


_PARTS = re.compile(r"v?([0-9]{1,9})(?![0-9])(?:\.([0-9]{1,9})(?![0-9]))?(?:\.([0-9]{1,9})(?![0-9]))?")


def version_key(text: str) -> tuple[int, ...]:
    """``v1.2.0`` -> (1, 2, 0); missing parts are 0, and what is no version is ()."""
    match = _PARTS.match(text.strip())
    return tuple(int(part or 0) for part in match.groups()) if match else ()
