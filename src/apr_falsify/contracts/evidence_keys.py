"""The keys under which contracts name their evidence, and how the value of each is read: one table.

A key that looks like evidence and is in none of these tables is reported by ``rules.evidence_keys``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCK, LOCATION, PLACE, TEST, CODE, LIVE, CLAIM_TEXT = (
    "block",
    "location",
    "place",
    "test",
    "code",
    "live",
    "text",
)
"""How a value is read:

- block: files and names side by side, or a list of sentences that name them;
- location: ``path::name``, a command or a name, one or a list of them;
- place: ``path::name`` alone; whatever else stands there is a label of the contract's own;
- test: commands, node ids, names of tests;
- code: the text of a test, whose functions are what is named;
- live: as a block, and the record of a live run that FUNCTIONAL may rest on;
- text: read by a person only; looks like evidence, names none.
"""

_WORDS = {
    BLOCK: "algorithm_evidence evidence evidence_discharged_by discharge_evidence partial_evidence "
    "test_evidence integration_evidence code_evidence implementation_evidence additional_evidence "
    "proof_evidence",
    LIVE: "functional_evidence live_evidence runtime_evidence live_run live_runs",
    LOCATION: "test_locations test_location test_paths test_path test_file test_files verified_by "
    "verified_in proved_by proven_by proven_in tested_by tested_in checked_by covered_by enforced_by "
    "discharged_by falsified_by bound_to bound_by bound_in implementation implementations "
    "implemented_by implemented_in implemented_at proof_file proof_files proof_path lean_file "
    "lean_files lean_proof_file coq_file kani_file evidence_file evidence_files evidence_path "
    "evidence_paths evidence_location evidence_locations",
    PLACE: "applies_to location",
    TEST: "test tests test_harness harness command test_command pytest cargo_test verification_command "
    "falsification_command test_commands",
    CODE: "falsification_test",
    CLAIM_TEXT: "binds_to full_discharge_blocks_on discharge discharges discharge_status verdict "
    "verification_method verification_summary if_test_passes if_test_fails if_test_compiles "
    "evidence_keys evidence_required evidence_needed evidence_type evidence_kind evidence_level "
    "test_type test_kind test_name test_id test_category test_method test_data test_input test_inputs "
    "test_fixture test_vectors test_cases test_count test_status test_plan proof_status proof_type "
    "proof_method proof_strategy proof_technique proof_obligation proof_obligations proof_level "
    "proof_sketch proof_notes verification_level verification_status verified verified_at verified_on "
    "verification implementation_status implementation_notes implementation_note implemented "
    "binding_status bindings bound bounds upper_bound lower_bound error_bound tolerance_bound covers "
    "harness_type discharged discharged_at discharged_on evidence_notes evidence_note test_notes "
    "falsification falsification_tests falsification_condition falsification_conditions tested "
    "test_timeout evidence_method evidence_source evidence_date "
    "evidence_status evidence_state lean_theorem lean_theorems",
}
KEYS: dict[str, str] = {key: reading for reading, keys in _WORDS.items() for key in keys.split()}
"""Key -> how it is read."""

_LOOKS = re.compile(
    r"evidence|(?:^|_)(?:tests?|proofs?|harness(?:es)?|witness(?:es)?|attestations?)(?:$|_)"
    r"|(?:^|_)(?:verified|proved|proven|tested|checked|covered|enforced|discharged|falsified|bound|implemented|"
    r"validated|demonstrated|confirmed|shown|witnessed|attested|evidenced|certified|exercised|asserted|guarded)_(?:by|in|at|to|with|through|via)$|^implementation"
)


_MAY_LOOK = re.compile(
    r"(?:^|_)(?:backed|supported|corroborated|substantiated|established|ensured|guaranteed|satisfied|measured|"
    r"reproduced|justified|pinned|locked|upheld|realized|realised|wired|defined|located)_(?:by|in|at|to|via)$"
)
_NAMES_SOURCE = re.compile(r"[\w/-]\.(?:rs|py|lean|v|c|cc|cpp|h|cu|go|ts|js|sh)(?:::|:\d|#L|[\s`),;]|$)")


def keys_read_as(*readings: str) -> tuple[str, ...]:
    """Return the keys that are read in one of the ways."""
    return tuple(key for key, reading in KEYS.items() if reading in readings)


def looks_like_evidence(key: str) -> bool:
    """Whether a key that is in no table has a name that evidence goes by."""
    return key not in KEYS and bool(_LOOKS.search(key.lower()))


def may_be_evidence(key: str, value: object) -> bool:
    """Whether a key that is in no table goes by a name that evidence may have, and its value names a file."""
    texts = value if isinstance(value, list) else [value]
    named = any(isinstance(one, str) and _NAMES_SOURCE.search(one) for one in texts)
    return named and key not in KEYS and bool(_MAY_LOOK.search(key.lower()))


EVIDENCE = frozenset(keys_read_as(BLOCK, LIVE, LOCATION, TEST, CODE))
"""Keys whose value may carry a status."""

_PART = re.compile(r"[A-Za-z_][\w-]*")
_INSIDE = frozenset(keys_read_as(BLOCK, LIVE, LOCATION, TEST))


def is_inside_evidence(key: str) -> bool:
    """Whether a key path leads into a block of evidence, where plain words name files and functions."""
    return not _INSIDE.isdisjoint(_PART.findall(key))


def first_of(keys: Iterable[str], mapping: object) -> tuple[str, ...]:
    """Return those of the keys that a mapping has, in its own order."""
    wanted = frozenset(keys)
    return tuple(key for key in mapping if key in wanted) if isinstance(mapping, dict) else ()
