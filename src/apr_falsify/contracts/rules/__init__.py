"""The table of rules: every code that can be reported, its severity, and why it is one.

A check is one small function in a module beside this one. Codes without a check here come from the reader
(``source``) or from resolving names (``resolve``): they are in the table all the same, so that it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apr_falsify.contracts.model import Contract
    from apr_falsify.contracts.problem import Problem

ERROR, WARNING, NOTICE = "error", "warning", "notice"
SEVERITIES = (ERROR, WARNING, NOTICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRule:
    """One rule: a stable kebab-case code, its severity, and the reason in a line."""

    code: str
    severity: str
    reason: str


def _rules(*rows: tuple[str, str, str]) -> dict[str, ContractRule]:
    return {
        code: ContractRule(code=code, severity=severity, reason=reason) for code, severity, reason in rows
    }


READING = _rules(
    ("unreadable-file", ERROR, "a contract that cannot be read promises nothing"),
    ("file-too-large", ERROR, "a contract is written and read by people; 2 MiB is no contract"),
    ("not-utf8", ERROR, "YAML is UTF-8; other bytes are read differently by every tool"),
    ("control-character", ERROR, "YAML forbids control characters; tools cut the file there"),
    ("yaml-syntax", ERROR, "what does not parse is not read by anybody"),
    ("yaml-tab", ERROR, "YAML forbids tabs as indentation"),
    ("yaml-too-deep", ERROR, "nesting this deep is an attack on a parser, not a contract"),
    ("yaml-alias-explosion", ERROR, "aliases that multiply exhaust the reader"),
    ("several-documents", ERROR, "most tools read only the first document of a file"),
    ("duplicate-key", ERROR, "YAML keeps one of two equal keys, silently"),
    ("byte-order-mark", NOTICE, "some readers are one character off behind it"),
    ("empty-document", NOTICE, "a file of comments only is no contract"),
    ("not-a-mapping", NOTICE, "a list or scalar at the top is no contract"),
)
_OF_ONE_CONTRACT = _rules(
    # shape
    ("schema-violation", ERROR, "a value of the wrong shape is skipped by readers, so it checks nothing"),
    ("metadata-missing", ERROR, "falsifiers without id and version cannot be cited"),
    ("unknown-block", NOTICE, "a block that no reader knows is not checked by any"),
    ("version-not-semver", WARNING, "a version that cannot be ordered cannot be relied on"),
    ("version-disagrees", ERROR, "two versions of one contract: nobody knows which is cited"),
    # statuses
    ("unknown-status", ERROR, "a status word outside the tables means what its reader likes"),
    ("partial-without-evidence", ERROR, "PARTIAL claims code that exists and is checked, so it names it"),
    ("claim-without-evidence", ERROR, "a status that says 'shown' names what shows it"),
    ("verdict-disagrees", ERROR, "two words on one falsifier that contradict: one of them is out of date"),
    ("test-of-comments-only", ERROR, "comments run nothing, so nothing is falsified"),
    ("test-or-equivalent", WARNING, "'or equivalent' names no test: any will do, and none is missed"),
    ("metadata-status", ERROR, "a contract is as strong as its weakest falsifier"),
    ("says-not-yet", NOTICE, "a text that says 'not yet' contradicts a status that says 'done'"),
    ("functional-without-lane", ERROR, "a bundle proves a lane; without a lane it proves nothing"),
    # figures
    ("count-disagrees", ERROR, "a count that differs from its list: one of them is out of date"),
    ("summary-disagrees", ERROR, "a summary that differs from what it sums up: one of them is out of date"),
    ("placeholder", WARNING, "what is still to be written promises nothing"),
    ("changelog-version", ERROR, "the newest changelog entry is the contract's version"),
    # names
    ("file-not-found", ERROR, "a named file exists"),
    (
        "path-outside-source",
        ERROR,
        "a contract names files of its source tree, never of the reader's machine",
    ),
    ("symbol-not-found", ERROR, "a named function, type or variant exists"),
    ("symbol-not-in-file", ERROR, "it exists in the file that is named"),
    ("test-not-found", ERROR, "a named test exists"),
    ("test-not-collected", ERROR, "a named test is one that the runner collects"),
    ("test-ignored", ERROR, "a test that never runs falsifies nothing"),
    ("crate-not-readable", NOTICE, "cargo runs no test of a crate that it cannot build"),
    ("test-defined-twice", NOTICE, "of two tests of one name only the last runs"),
    ("test-asserts-nothing", WARNING, "a test that cannot fail falsifies nothing"),
    (
        "test-not-checkable",
        NOTICE,
        "reading does not show what a macro or a hook makes",
    ),
    ("name-in-prose", WARNING, "a test that a sentence names exists, as one in a command does"),
    ("falsifier-without-test", ERROR, "what nothing can falsify claims nothing"),
    ("test-file-not-discovered", NOTICE, "plain pytest does not look into the file"),
    ("file-of-comments-only", ERROR, "a proof or a test of comments only shows nothing"),
    ("source-does-not-parse", ERROR, "a named file that does not parse defines nothing"),
    ("source-not-read", NOTICE, "a named file that is too large for a source file shows no names"),
    ("absent-as-stated", NOTICE, "a falsifier that says something is missing may name what is missing"),
    ("evidence-not-read", NOTICE, "evidence under a key that no table has is checked by nobody"),
    ("binding-elsewhere", NOTICE, "a reader looks for the function where the binding says it is"),
    ("under-claimed", NOTICE, "a status that says 'to come' of what is there hides it"),
    ("binding-without-function", NOTICE, "a binding that names no function claims what nobody can look up"),
    ("unresolved-name", WARNING, "a name of another tree is neither right nor wrong until the tree is given"),
)
ACROSS_CONTRACTS = _rules(  # among few of the contracts these may find less, or more
    ("duplicate-falsifier-id", ERROR, "an id names one falsifier"),
    ("duplicate-contract-id", ERROR, "an id names one contract"),
    ("id-not-registered", WARNING, "a falsifier that is cited and registered nowhere was checked by nobody"),
    (
        "obligation-not-found",
        WARNING,
        "a harness proves an obligation of its own contract",
    ),
    ("sibling-missing", ERROR, "a contract that is relied on exists"),
    ("sibling-version", ERROR, "a sibling is at least at the version it is cited at"),
    ("sibling-status", ERROR, "a sibling is at least at the status it is cited at"),
    ("reference-missing", WARNING, "a contract that is referred to exists"),
    ("unresolved-sibling", WARNING, "a contract of another tree is not judged"),
)
OF_HISTORY = _rules(  # these compare with a commit
    ("version-not-bumped", ERROR, "content that changed under one version is two contracts of one name"),
    ("status-raised-without-bundle", ERROR, "a rung is earned by evidence"),
    ("evidence-changed-without-minor", ERROR, "other evidence is another claim: at least a MINOR version"),
    ("evidence-changed-without-changelog", ERROR, "other evidence is named in the changelog"),
    ("falsifier-removed", ERROR, "a falsifier that goes takes its claim along, unseen"),
)
_OF_EVIDENCE = _rules(
    # an error where the project keeps its evidence, and with --strict everywhere
    ("functional-without-bundle", WARNING, "FUNCTIONAL rests on a bundle that verifies"),
    ("evidence-does-not-verify", ERROR, "a bundle that does not verify carries no status"),
    ("evidence-stale", WARNING, "what the bundle bound has changed since"),
    ("bundle-not-named", NOTICE, "evidence that no contract names carries no status"),
)

RULES = READING | _OF_ONE_CONTRACT | ACROSS_CONTRACTS | OF_HISTORY | _OF_EVIDENCE

NOT_READ = READING.keys() - {"duplicate-key", "byte-order-mark"}
"""Where one of these is reported, little else of the file can be."""

HIDING = frozenset(
    ("unresolved-name", "unresolved-sibling", "crate-not-readable", "test-not-checkable", "source-not-read")
)
"""Where one of these is reported of a name, nothing else can be found out about it."""

NAMED_IN_WORDS = frozenset(
    (
        "file-not-found",
        "symbol-not-found",
        "symbol-not-in-file",
        "test-not-found",
        "test-not-collected",
        "test-ignored",
    )
)
"""Their subject may be the name of a test or a symbol alone: only the words say of which file."""


Check = Callable[["Contract"], Iterator["Problem"]]


def contract_rules() -> tuple[Check, ...]:
    """Checks that need one contract only; the schema is asked apart, since equal shapes share its verdict."""
    from apr_falsify.contracts.rules import claims, counts, placeholders, shape, status, summaries

    return (
        shape.metadata_missing,
        shape.unknown_block,
        shape.version_not_semver,
        shape.version_disagrees,
        status.unknown_status,
        claims.partial_without_evidence,
        claims.claim_without_evidence,
        claims.contract_without_evidence,
        claims.verdict_disagrees,
        claims.test_of_comments_only,
        claims.test_or_equivalent,
        status.metadata_status,
        status.says_not_yet,
        status.functional_without_lane,
        counts.count_disagrees,
        summaries.summary_disagrees,
        summaries.status_below_falsifiers,
        placeholders.placeholder,
        placeholders.evidence_not_read,
        counts.changelog_version,
    )
