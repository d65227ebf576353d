"""Files of build tools, proofs and expressions that nobody can follow: each run ends, and accuses nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate

DOUBLING = "\n".join(f"A{at} = $(A{at + 1})$(A{at + 1})$(A{at + 1})$(A{at + 1})" for at in range(12))
DIAMONDS = "\n".join(f"a-{at}: b-{at} c-{at}\nb-{at}: a-{at + 1}\nc-{at}: a-{at + 1}" for at in range(40))
LONG = "x" * 90
CASES: dict[str, tuple[dict[str, str], str]] = {
    "targets in a circle": (
        {"Makefile": "go-a: go-b\n\t$(MAKE) go-b\ngo-b: go-a\n\t$(MAKE) go-a\n"},
        "make go-a",
    ),
    "variables that double": ({"Makefile": f"{DOUBLING}\nA12 = xx\ngo-a:\n\tpytest $(A0)\n"}, "make go-a"),
    "targets in diamonds": ({"Makefile": f"{DIAMONDS}\na-40:\n\ttrue\n"}, "make a-0"),
    "blanks without end": ({"Makefile": "a" + " " * 200_000 + "\ngo-a:\n\ttrue\n"}, "make go-a"),
    "a Makefile of bytes": ({"Makefile": "\x00\x01:\x02\ngo-a:\n\t\x00\x7f\n"}, "make go-a"),
    "recipes in a circle": (
        {"justfile": "go-a: go-b\n    just go-b\ngo-b: go-a\n    just go-a\n"},
        "just go-a",
    ),
    "a noxfile that breaks off": (
        {"noxfile.py": "import nox\n@nox.session\ndef go_a(session:\n"},
        "nox -s go_a",
    ),
    "a tox.ini that breaks off": ({"tox.ini": "[tox\nenvlist = \n[testenv:go-a\n"}, "tox -e go-a"),
    "a tox.ini of blank lines": ({"tox.ini": "[tox]\n" + "\n" * 200_000}, "tox -e py311"),
    "scripts in a circle": (
        {"scripts/a.sh": "bash scripts/b.sh\n", "scripts/b.sh": "bash scripts/a.sh\n"},
        "bash scripts/a.sh",
    ),
    "a regex without end": ({}, "cargo nextest run -E 'test(/(x+)+$/)'"),
    "a glob of many stars": ({}, f"cargo nextest run -E 'test(#{'*x' * 30}) or test({LONG})'"),
    "a glob of many braces": ({}, f"cargo nextest run -E 'test(#{'{a,b}' * 40}) or test({LONG})'"),
    "brackets without end": ({}, f"cargo nextest run -E '{'(' * 3000}test(a)'"),
}
CARGO = {
    "Cargo.toml": '[package]\nname = "demo"\nversion = "0.1.0"\n',
    "src/lib.rs": f"#[test]\nfn {LONG}() {{ assert_eq!(1 + 1, 2); }}\n",
}
HEAD = "metadata: {id: C-D, version: 1.0.0, status: ACTIVE, description: d}\nfalsification_tests:\n"


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_followed_accuses_nobody(tmp_path: Path, case: str) -> None:
    files, test = CASES[case]
    quoted = test.replace("'", "''")
    contract = f"{HEAD}- {{id: F-1, rule: r, prediction: p, if_fails: x, test: '{quoted}'}}\n"
    for name, text in {**CARGO, **files, "contracts/c-v1.yaml": contract}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    outcome = validate((tmp_path / "contracts",), cached=False)
    assert {one.problem.code for one in outcome.shown} <= {"test-not-checkable"}


def test_proofs_that_import_each_other_and_comments_that_do_not_end(tmp_path: Path) -> None:
    files = {
        "Cargo.toml": CARGO["Cargo.toml"],
        "lean/A/B.lean": "import A.C\n" + "/-" * 60_000,
        "lean/A/C.lean": "import A.B\n" + "\n" * 100_000 + "theorem there : True := trivial\n",
        "contracts/c-v1.yaml": (
            "metadata: {id: C-D, version: 1.0.0, status: ACTIVE, description: d}\nproof_obligations:\n"
            "- {id: I-1, property: p, lean: {module: A.B, theorem: there, status: proved}}\n"
            "- {id: I-2, property: p, lean: {module: A.B, theorem: gone, status: proved}}\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    outcome = validate((tmp_path / "contracts",), cached=False)
    assert [(one.problem.code, one.problem.subject) for one in outcome.shown] == [
        ("symbol-not-found", "gone")
    ]
