"""Contracts as people write them, and the exact characters that a promotion of F-1 to PARTIAL may change.

``edits`` are written by hand: each text on the left stands once, and becomes the one on the right. Whatever
they do not name must come out byte for byte as it went in.
"""

from __future__ import annotations

from dataclasses import dataclass

SHA = "0f" * 32
BLOCKER, PARTIAL = "BLOCKER_FIXTURE_ABSENT", "PARTIAL_ALGORITHM_LEVEL"
RISES = f"F-1 rises from {BLOCKER} to {PARTIAL}."
PIN = f"{{bundle: evidence/F-1, statement_sha256: {SHA}}}"
DATE = "2026-12-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A contract, and what of it changes."""

    before: str
    edits: tuple[tuple[str, str], ...]
    mark: bytes = b""

    @property
    def data(self) -> bytes:
        return self.mark + self.before.encode()

    @property
    def expected(self) -> bytes:
        text = self.before
        for old, new in self.edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return self.mark + text.encode()


def style(before: str, *edits: tuple[str, str], mark: bytes = b"") -> Style:
    return Style(before=before, edits=edits, mark=mark)


USUAL = f"""\
# a contract
metadata:
  id: C-X
  version: 1.4.2   # semver
  status: {BLOCKER}
  description: |
    What it is about.

    v1.4.2 (2026-01-02): A patch.
    v1.4.0 (2026-01-01): First.
falsification_tests:
  - id: F-1
    rule: r   # a rule
    status: {BLOCKER}
    algorithm_evidence:
      file_paths: [a.py]
"""
VERSION = ("version: 1.4.2", "version: 1.5.0")
METADATA = (f"  status: {BLOCKER}\n  description", f"  status: {PARTIAL}\n  description")
STATUS = (f"    status: {BLOCKER}\n", f"    status: {PARTIAL}\n    evidence: {PIN}\n")
LOG = ("    v1.4.2 (2026-01-02): A", f"    v1.5.0 ({DATE}): {RISES}\n    v1.4.2 (2026-01-02): A")


def minimal(description: str, *, version: str = "1.0.0", tail: str = "") -> str:
    return (
        f"metadata: \n  version: {version}\n  description: {description}\n"
        f"falsification_tests:\n- id: F-1\n  status: {BLOCKER}\n{tail}"
    )


BARE = (f"  status: {BLOCKER}\n", f"  status: {PARTIAL}\n  evidence: {PIN}\n")
FIRST = ("version: 1.0.0", "version: 1.1.0")
ENTRY = f"v1.1.0 ({DATE}): {RISES}"

STYLES = {
    "comments": style(USUAL, VERSION, METADATA, STATUS, LOG),
    "crlf": style(
        USUAL.replace("\n", "\r\n"),
        *(
            (old.replace("\n", "\r\n"), new.replace("\n", "\r\n"))
            for old, new in (VERSION, METADATA, STATUS, LOG)
        ),
    ),
    "byte-order-mark": style(USUAL, VERSION, METADATA, STATUS, LOG, mark=b"\xef\xbb\xbf"),
    "byte-order-mark-and-unicode": style(
        USUAL.replace("What it", "Was es — übrigens 模型 🧮 — ist\u00a0it"),
        VERSION,
        METADATA,
        STATUS,
        LOG,
        mark=b"\xef\xbb\xbf",
    ),
    "no-final-newline": style(
        minimal('"d"').rstrip("\n"),
        FIRST,
        (f"  status: {BLOCKER}", f"  status: {PARTIAL}\n  evidence: {PIN}"),
        ('"d"', f'"d\\n\\n{ENTRY}"'),
    ),
    "trailing-comment-and-tabs-after-values": style(
        minimal("|\n    d").replace(BLOCKER, f"{BLOCKER}\t# needs the fixture"),
        FIRST,
        (f"{BLOCKER}\t# needs the fixture\n", f"{PARTIAL}\t# needs the fixture\n  evidence: {PIN}\n"),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "single-quoted-status": style(
        minimal("|\n    d").replace(BLOCKER, f"'{BLOCKER}'"),
        FIRST,
        (f"'{BLOCKER}'\n", f"'{PARTIAL}'\n  evidence: {PIN}\n"),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "double-quoted-status-and-version": style(
        minimal("|\n    d", version='"1.0.0"').replace(BLOCKER, f'"{BLOCKER}"'),
        ('"1.0.0"', '"1.1.0"'),
        (f'"{BLOCKER}"\n', f'"{PARTIAL}"\n  evidence: {PIN}\n'),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "v-before-the-version": style(
        minimal("|\n    d", version="v1.0.0"),
        ("version: v1.0.0", "version: v1.1.0"),
        BARE,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "folded-description-without-changelog": style(
        minimal(">\n    one line\n    that is folded\n\n    and a paragraph"),
        FIRST,
        BARE,
        ("    and a paragraph\n", f"    and a paragraph\n\n    {ENTRY}\n"),
    ),
    "folded-description-with-entries-apart": style(
        minimal(
            ">-\n    d\n\n    v1.0.0 (2026-01-01): First,\n    folded.\n\n    v0.9.0 (2025-01-01): Zeroth."
        ),
        FIRST,
        BARE,
        ("    v1.0.0 (", f"    {ENTRY}\n\n    v1.0.0 ("),
    ),
    "literal-keep-with-blank-lines-behind": style(
        minimal("|+\n    d\n\n").replace("falsification", "# the falsifiers\nfalsification"),
        FIRST,
        BARE,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "literal-with-indicator-and-deep-first-line": style(
        minimal("|2-\n      deep\n    d\n    v1.0.0: First."),
        FIRST,
        BARE,
        ("    v1.0.0: First", f"    v1.1.0: {RISES}\n    v1.0.0: First"),
    ),
    "changelog-as-a-bold-list": style(
        minimal("|\n    d\n\n    - **v1.0.0** (2026-01-01): First."),
        FIRST,
        BARE,
        ("    - **v1.0.0", f"    - **v1.1.0** ({DATE}): {RISES}\n    - **v1.0.0"),
    ),
    "changelog-with-dashes": style(
        minimal("|\n    v1.0.0 — First."),
        FIRST,
        BARE,
        ("    v1.0.0 —", f"    v1.1.0 — {RISES}\n    v1.0.0 —"),
    ),
    "changelog-oldest-first": style(
        minimal(
            "|\n    v0.9.0 (2025-01-01): Zero.\n    v1.0.0 (2026-01-01): First\n    in two lines.\n\n    End."
        ),
        FIRST,
        BARE,
        ("    in two lines.\n", f"    in two lines.\n    {ENTRY}\n"),
    ),
    "plain-description": style(
        minimal("a plain text, in one line  # remark"),
        FIRST,
        BARE,
        ("one line  #", f"one line v1.1.0 ({DATE}) - {RISES}  #"),
    ),
    "plain-description-over-lines": style(
        minimal("a plain text\n    in two lines"),
        FIRST,
        BARE,
        ("two lines\n", f"two lines v1.1.0 ({DATE}) - {RISES}\n"),
    ),
    "single-quoted-description-over-lines": style(
        minimal("'it''s quoted\n\n    v1.0.0 (2026-01-01): First.'"),
        FIRST,
        BARE,
        ("    v1.0.0 (", f"    {ENTRY}\n\n    v1.0.0 ("),
    ),
    "single-quoted-description": style(
        minimal("'it''s: quoted'"), FIRST, BARE, ("quoted'", f"quoted {ENTRY}'")
    ),
    "double-quoted-description-with-escapes": style(
        minimal('"d \\u00e9\\nv1.0.0 (2026-01-01): First."'),
        FIRST,
        BARE,
        ("\\nv1.0.0 (", f"\\n{ENTRY}\\nv1.0.0 ("),
    ),
    "flow-maps": style(
        "metadata: {version: 1.0.0, description: 'd', id: C-X}\n"
        f"falsification_tests: [{{id: F-1, status: {BLOCKER}, rule: r}}, {{id: F-2}}]\n",
        FIRST,
        ("'d'", f"'d {ENTRY}'"),
        (f"status: {BLOCKER},", f"status: {PARTIAL}, evidence: {PIN},"),
    ),
    "flow-map-at-the-end-of-a-block-list": style(
        minimal("|\n    d").replace(
            f"- id: F-1\n  status: {BLOCKER}\n", f"- {{ id: F-1, status: {BLOCKER} }} # one\n"
        ),
        FIRST,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        (f"{BLOCKER} }}", f"{PARTIAL}, evidence: {PIN} }}"),
    ),
    "json": style(
        '{"metadata": {"version": "1.0.0", "description": "d"},\n'
        f' "falsification_tests": [{{"id": "F-1", "status": "{BLOCKER}"}}]}}\n',
        ('"1.0.0"', '"1.1.0"'),
        ('"d"', f'"d\\n\\n{ENTRY}"'),
        (
            f'"{BLOCKER}"',
            f'"{PARTIAL}", "evidence": {{"bundle": "evidence/F-1", "statement_sha256": "{SHA}"}}',
        ),
    ),
    "status-first-in-a-deep-list-item": style(
        f"metadata:\n    version: 1.0.0\n    description: |\n        d\nfalsification_tests:\n"
        f"   -    status: {BLOCKER}\n        id: F-1\n",
        FIRST,
        ("        d\n", f"        d\n\n        {ENTRY}\n"),
        (f"{BLOCKER}\n", f"{PARTIAL}\n        evidence: {PIN}\n"),
    ),
    "falsifiers-by-name": style(
        minimal("|\n    d").replace(
            f"- id: F-1\n  status: {BLOCKER}\n", f"  F-1:\n    status: {BLOCKER}\n  F-2: {{}}\n"
        ),
        FIRST,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        (f"    status: {BLOCKER}\n", f"    status: {PARTIAL}\n    evidence: {PIN}\n"),
    ),
    "evidence-is-null-already": style(
        minimal("|\n    d", tail="  evidence:   # none yet\n  rule: r\n"),
        FIRST,
        (BLOCKER, PARTIAL),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        ("evidence:   #", f"evidence: {PIN}   #"),
    ),
    "evidence-is-tilde": style(
        minimal("|\n    d", tail="  evidence: ~\n"),
        FIRST,
        (BLOCKER, PARTIAL),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        ("evidence: ~", f"evidence: {PIN}"),
    ),
    "evidence-is-there-in-a-block": style(
        minimal(
            "|\n    d",
            tail=f"  evidence:\n    bundle: 'old/F-1'   # a\n    note: b\n    statement_sha256: {'a' * 64}\n",
        ),
        FIRST,
        (BLOCKER, PARTIAL),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        ("'old/F-1'", "evidence/F-1"),
        ("a" * 64, SHA),
    ),
    "evidence-is-there-without-digest": style(
        minimal("|\n    d", tail="  evidence: {bundle: evidence/F-1}\n"),
        FIRST,
        (BLOCKER, PARTIAL),
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
        ("evidence/F-1}", f"evidence/F-1, statement_sha256: {SHA}}}"),
    ),
    "anchors-elsewhere": style(
        minimal("|\n    d", tail="- id: F-2\n  rule: &r text\n- id: F-3\n  rule: *r\n"),
        FIRST,
        BARE,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
    "the-others-are-weaker": style(
        USUAL + f"  - id: F-2\n    status: {BLOCKER} \n",
        VERSION,
        STATUS,
        LOG,
    ),
    "version-and-description-stand-twice": style(
        f'metadata:\n  version: "1.0.0"\n  description: "m"\nversion: "1.0.0"\ndescription: |\n  d\n'
        f"falsification:\n- id: F-1\n  discharge_status: {BLOCKER}\n",
        ('  version: "1.0.0"', '  version: "1.1.0"'),
        ('\nversion: "1.0.0"', '\nversion: "1.1.0"'),
        ('"m"', f'"m\\n\\n{ENTRY}"'),
        (f"  discharge_status: {BLOCKER}\n", f"  discharge_status: {PARTIAL}\n  evidence: {PIN}\n"),
    ),
    "metadata-status-of-the-text": style(
        USUAL.replace(f"status: {BLOCKER}\n  description", "status: PROPOSED\n  description"),
        VERSION,
        STATUS,
        LOG,
    ),
    "carriage-returns-only-between-some-lines": style(
        USUAL.replace("rule: r   # a rule\n", "rule: r   # a rule\r\n"), VERSION, METADATA, STATUS, LOG
    ),
    "document-markers": style(
        "%YAML 1.1\n---\n" + minimal("|\n    d") + "...\n",
        FIRST,
        BARE,
        ("    d\n", f"    d\n\n    {ENTRY}\n"),
    ),
}

D = minimal("|\n    d")


REFUSED = {
    "several-documents": (D + "---\na: 1\n", "several-documents"),
    "duplicate-key": (minimal("|\n    d", tail="  rule: a\n  rule: b\n"), "duplicate-key"),
    "duplicate-id": (minimal("|\n    d", tail="- id: F-1\n"), "stands 2 times"),
    "no-such-falsifier": (D.replace("F-1", "F-11"), "has no falsifier 'F-1'"),
    "alias-as-status": (
        D.replace("- id", f"- id: F-0\n  status: &s {BLOCKER}\n- id").replace(
            f"F-1\n  status: {BLOCKER}", "F-1\n  status: *s"
        ),
        "status carries an anchor",
    ),
    "anchored-status": (D.replace(BLOCKER, f"&s {BLOCKER}"), "status carries an anchor"),
    "tagged-status": (D.replace(BLOCKER, f"!!str {BLOCKER}"), "status carries an anchor"),
    "anchored-falsifier": (D.replace("- id: F-1\n", "- &f\n  id: F-1\n") + "- *f\n", "F-1"),
    "anchored-metadata": (D.replace("metadata: \n", "metadata: &m\n") + "more: *m\n", "metadata carries"),
    "merged-falsifier": ("base: &b {status: X}\n" + minimal("|\n    d", tail="  <<: *b\n"), "merged"),
    "merged-metadata": (
        "base: &b {author: me}\n" + D.replace("metadata: \n", "metadata:\n  <<: *b\n"),
        "merged",
    ),
    "lines-that-end-as-only-yaml-ends-them": (D.replace("|\n", "|\u2028"), "lines do not end"),
    "version-of-thousands-of-digits": (D.replace("1.0.0", "9" * 5000 + ".0.0", 1), "not MAJOR.MINOR.PATCH"),
    "status-inside-algorithm-evidence": (
        D.replace(f"  status: {BLOCKER}", f"  algorithm_evidence: {{status: {BLOCKER}}}"),
        "stands inside algorithm_evidence",
    ),
    "no-status": (D.replace(f"  status: {BLOCKER}", "  rule: r"), "no status"),
    "status-with-a-remark": (D.replace(BLOCKER, f"{BLOCKER} (needs a fixture)"), "no word of the ladder"),
    "status-that-is-no-rung": (D.replace(BLOCKER, "PROPOSED"), "no word of the ladder"),
    "status-with-an-escape": (
        D.replace(BLOCKER, '"\\x42LOCKER_FIXTURE_ABSENT"'),
        "does not stand there once",
    ),
    "status-in-a-block": (D.replace(BLOCKER, f">\n    {BLOCKER}"), "block of text"),
    "version-not-semver": (minimal("|\n    d", version="'2026-01'"), "not MAJOR.MINOR.PATCH"),
    "version-is-a-pre-release": (minimal("|\n    d", version="1.0.0-rc.1"), "not MAJOR.MINOR.PATCH"),
    "no-version": (D.replace("  version: 1.0.0\n", ""), "has no version"),
    "two-versions-that-differ": (D + "version: 1\n", "not the contract's only one"),
    "no-description": (minimal("~"), "no description"),
    "evidence-is-a-command": (minimal("|\n    d", tail="  evidence: cargo test\n"), "no bundle"),
    "evidence-is-a-list": (minimal("|\n    d", tail="  evidence: [a]\n"), "no bundle"),
    "evidence-of-other-keys": (minimal("|\n    d", tail="  evidence: {discharged_by: a}\n"), "no bundle"),
    "not-utf8": (D + "# \udcff\n", "not-utf8"),
    "a-list": ("- a\n", "is no contract"),
    "metadata-status-with-a-remark": (
        USUAL.replace(f"{BLOCKER}\n  description", f"{BLOCKER} (1 of 2)\n  description"),
        "more than a word",
    ),
}
"""Contracts that are not edited, and what the refusal says."""
