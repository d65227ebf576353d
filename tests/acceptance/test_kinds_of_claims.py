"""Kinds of drift between a claim and its evidence, each beside its valid twin: keys, proofs, bindings.

Every case is a contract of one folder, so that all are one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate

SYMBOL, FILE = "symbol-not-found", "file-not-found"
TREE: Mapping[str, str] = {
    "Cargo.toml": '[package]\nname = "demo"\nversion = "0.1.0"\n',
    "src/lib.rs": (
        "pub mod ops;\npub mod kinds;\npub fn add(a: i32, b: i32) -> i32 { a + b }\n"
        "#[cfg(test)]\nmod tests { #[test]\nfn sums_up() { assert_eq!(super::add(1, 2), 3); } }\n"
    ),
    "src/ops.rs": "pub fn scale(x: f32) -> f32 { x }\n#[cfg(kani)]\n#[kani::proof]\nfn verify_scale() {}\n",
    "src/kinds.rs": (
        "pub use crate::ops::scale;\npub struct Gain;\nimpl Gain { pub fn apply() {} }\n"
        'include!("kinds_more.rs");\n'
    ),
    "src/kinds_more.rs": "pub fn included(x: f32) -> f32 { x + x }\n",
    "lean/Demo/Scale.lean": "import Demo.Inner\ntheorem scale_doubles (x : Nat) : x = x := rfl\n",
    "lean/Demo/Inner.lean": "namespace Scale\nlemma is_zero : 2 * 0 = 0 := rfl\n",
    "lean/Demo/Empty.lean": "-- to be proved\n/- theorem scale_halves : True := trivial -/\n",
    "proofs/add.v": "(* Theorem add_comm : True. *)\n",
}
EVIDENCE = ("verified_by", "bound_to", "implementation", "test_path", "proof_file", "functional_evidence",
            "live_evidence", "evidence_discharged_by", "test_evidence", "enforced_by")  # fmt: skip


def obligation(text: str) -> str:
    return f"proof_obligations:\n  - id: INV-001\n    property: p\n{text}"


def lean(place: str, theorem: str, status: str = "proved") -> str:
    return obligation(f"    lean: {{{place}, theorem: {theorem}, status: {status}}}\n")


def kani(harness: str, more: str) -> str:
    return (
        obligation("") + f"kani_harnesses:\n  - {{id: K-1, obligation: INV-001, harness: {harness}{more}}}\n"
    )


CASES: Mapping[str, tuple[str, list[str]]] = {
    **{f"{key} of an obligation": (obligation(f"    {key}: src/gone.rs\n"), [FILE]) for key in EVIDENCE},
    **{f"{key} there": (obligation(f"    {key}: src/lib.rs::add\n"), []) for key in EVIDENCE},
    "evidence of a registered task": ("tasks:\n  - {id: T, status: DONE, file: src/gone.rs}\n", [FILE]),
    "evidence of a task to come": ("tasks:\n  - {id: T, status: TODO, evidence: src/gone.rs}\n", []),
    "a key nobody reads": (obligation("    witnessed_by: src/gone.rs\n"), ["evidence-not-read"]),
    "a key of another kind": (obligation("    reviewed_by: src/gone.rs\n"), []),
    "theorem": (lean("file: lean/Demo/Scale.lean", "scale_doubles"), []),
    "theorem gone": (lean("file: lean/Demo/Scale.lean", "scale_triples"), [SYMBOL]),
    "theorem imported": (lean("module: Demo.Scale", "Scale.is_zero"), []),
    "theorem not in module": (lean("module: Demo.Scale", "Scale.is_one"), [SYMBOL]),
    "theorem of a module elsewhere": (lean("module: Mathlib.Data.Nat", "Nat.is_one"), []),
    "theorem still open": (lean("module: Demo.Scale", "Scale.is_one", "sorry"), []),
    "theorem in a comment": (
        lean("file: lean/Demo/Empty.lean", "scale_halves"),
        ["file-of-comments-only", SYMBOL],
    ),
    "theorems": ("lean_theorems:\n  - {name: scale_fours, file: lean/Demo/Scale.lean}\n", [SYMBOL]),
    "theorem beside its file": (
        obligation("    proof_file: lean/Demo/Scale.lean\n    lean_theorem: scale_fours\n"),
        [SYMBOL],
    ),
    "proof of comments": (obligation("    proof_file: proofs/add.v\n"), ["file-of-comments-only"]),
    "proof by path in a comment": (
        obligation("    proof_file: proofs/add.v::add_comm\n"),
        ["file-of-comments-only", SYMBOL],
    ),
    "harness in its file": (kani("verify_scale", ", file: src/ops.rs"), []),
    "harness not in its file": (kani("verify_none", ", file: src/ops.rs"), [SYMBOL]),
    "harness that is proved": (kani("verify_ghost", ", status: PROVED"), [SYMBOL]),
    "harness to come": (kani("verify_ghost", ", status: PLANNED"), []),
    "harness, nothing said": (kani("verify_ghost", ""), []),
}
BINDINGS: Mapping[str, list[str]] = {
    "contract: c-000.yaml, equation: e, module_path: 'demo::ops', function: scale, status: implemented": [],
    "contract: c-000.yaml, equation: f, module_path: demo, function: add, status: implemented": [
        "reference-missing"
    ],
    "contract: gone-v1.yaml, equation: e, module_path: demo, function: add, status: implemented": [
        "sibling-missing"
    ],
    "contract: c-000.yaml, equation: e, module_path: demo, function: add, status: not_implemented": [
        "under-claimed"
    ],
    "contract: c-000.yaml, equation: e, module_path: demo, function: shrink, status: not_implemented": [],
    "contract: c-000.yaml, equation: e, module_path: demo, function: shrink, status: partial": [SYMBOL],
    **{
        f"equation: e, module_path: '{path}', function: '{name}', status: implemented": said
        for path, name, said in (
            ("demo::gone", "add", ["binding-elsewhere"]),
            ("demo::ops", "add", ["binding-elsewhere"]),
            ("demo::ops::Gain", "apply", ["binding-elsewhere"]),
            ("demo::kinds::Gain", "apply", []),
            ("demo::kinds::Gain", "Gain::apply", []),
            ("demo::kinds", "Gain::apply", []),
            ("demo::kinds", "scale", []),  # passed on
            ("demo::kinds", "included", []),  # from a file that it includes
            ("demo::ops::scale", "scale", []),
            ("demo", "scale", []),
        )
    },
}


@cache
def reported(root: Path) -> Mapping[str, list[str]]:
    """Codes by case, and by binding."""
    files = dict(TREE)
    for at, (more, _) in enumerate(CASES.values()):
        files[f"contracts/c-{at:03}.yaml"] = (
            f"metadata: {{id: C-{at:03}, version: 1.0.0, status: ACTIVE, description: d}}\n"
            f"equations:\n  e: {{formula: y = 2 x}}\nfalsification_tests:\n- {{id: F-{at:03}, rule: r, "
            f"prediction: p, if_fails: x, test: cargo test -p demo sums_up}}\n{more}"
        )
    rows = "".join(f"  - {{{binding}}}\n" for binding in BINDINGS)
    files["contracts/binding.yaml"] = f"version: 1.0.0\ntarget_crate: demo\nbindings:\n{rows}"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    found: dict[str, list[str]] = {name: [] for name in (*CASES, *BINDINGS)}
    for one in validate((root / "contracts",), cached=False).shown:
        stem = Path(one.problem.path).stem
        names, at = (
            (list(BINDINGS), one.problem.key.partition("[")[2].partition("]")[0])
            if stem == "binding"
            else (list(CASES), stem.removeprefix("c-"))
        )
        found[names[int(at)]].append(one.problem.code)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("claims")


@pytest.mark.parametrize("case", CASES)
def test_what_a_claim_names_is_there(root: Path, case: str) -> None:
    assert sorted(reported(root)[case]) == CASES[case][1]


@pytest.mark.parametrize("binding", BINDINGS)
def test_what_a_binding_says_is_so(root: Path, binding: str) -> None:
    assert reported(root)[binding] == BINDINGS[binding]


@pytest.mark.parametrize(
    ("cited", "hint"),
    [
        ("trace-ffn-sub-block-v1", "if it is of another repository"),
        ("agent-lop-v1", "did you mean 'agent-loop-v1'?"),
    ],
)
def test_a_contract_is_offered_only_where_it_is_a_near_spelling(
    tmp_path: Path, cited: str, hint: str
) -> None:
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    (tmp_path / "pyproject.toml").touch()
    for name, more in (("agent-loop-v1", ""), ("other-v1", f", depends_on: [{cited}]")):
        head = f"metadata: {{id: {name}, version: 1.0.0, status: ACTIVE, description: d{more}}}\n"
        (contracts / f"{name}.yaml").write_text(
            f"{head}equations: {{e: {{formula: y = x}}}}\n", encoding="utf-8"
        )
    (found,) = [one.problem for one in validate((contracts,), cached=False).shown]
    assert (found.code, found.hint.startswith(hint)) == ("sibling-missing", True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ScaledRope::apply", "did you mean 'ScaledRoPE'?"),  # the type is nowhere: its method tells nothing
        ("ScaledRoPE::appli", "did you mean 'apply'"),
    ],
)
def test_of_a_type_that_is_nowhere_the_type_is_offered(tmp_path: Path, name: str, hint: str) -> None:
    files = {
        "Cargo.toml": '[package]\nname = "demo"\nversion = "0.1.0"\n',
        "src/lib.rs": "pub struct ScaledRoPE;\nimpl ScaledRoPE { pub fn apply() {} }\nfn apply_all() {}\n",
        "contracts/binding.yaml": (
            "version: 1.0.0\ntarget_crate: demo\nbindings:\n"
            f"  - {{equation: e, module_path: demo, function: '{name}', status: implemented}}\n"
        ),
    }
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    (found,) = [one.problem for one in validate((tmp_path / "contracts",), cached=False).shown]
    assert (found.code, found.hint[: len(hint)]) == (SYMBOL, hint)
