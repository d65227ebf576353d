"""The map of design section 10, kept true: imports point one way, and only the oracle knows torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.unit.helpers import PACKAGE, run_script

ORDER = (
    "errors",
    "reading",
    "folders",
    "portable",
    "numerics",
    "model",
    "formats",
    "operators",
    "traces",
    "oracle",
    "subjects",
    "recording",
    "compare",
    "matching",
    "exam",
    "symbols",
    "contracts",
    "evidence",
    "sweeps",
    "commands",
    "pytest_plugin",
    "api",
)
"""The rooms, from the bottom up: a room may import those before it, and itself."""

GAPS: Mapping[str, tuple[str, ...]] = {
    "subjects": ("oracle",),
    "compare": ("oracle", "subjects", "recording"),
    "matching": ("oracle", "recording"),
    "exam": ("oracle", "subjects", "matching"),
    "exam.seeding": ("compare",),
    "symbols": ("traces", "oracle", "subjects", "compare", "matching", "exam"),
    "contracts": ("traces", "oracle", "subjects", "compare", "matching", "evidence"),
    "evidence": ("oracle", "subjects", "matching", "contracts.rules"),
    "sweeps": ("oracle", "subjects", "matching", "exam", "symbols", "contracts"),
}
"""Room, or a part of one -> what it may not import although that stands before it."""

HEAVY: Mapping[str, str] = {"torch": "oracle", "transformers": "oracle"}
"""Foreign package -> the one room that may import it, lazily or not."""

MAX_LINES = 399
OURS = "apr_falsify"


def modules_under(package: Path) -> Mapping[str, Path]:
    """Dotted name within the package -> file; the package itself is the empty name."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in sorted(package.rglob("*.py"))
    }


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that is imported anywhere in ``tree``, in functions and under TYPE_CHECKING too."""
    parents = f"{OURS}.{module}".rstrip(".").split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = parents[: len(parents) - node.level + is_package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def room_of(module: str) -> str:
    return module.partition(".")[0]


def problem_of(module: str, imported: str) -> str | None:
    """Say why ``module`` may not import ``imported``, ``None`` where it may."""
    room, foreign = room_of(module), imported.partition(".")[0]
    if foreign in HEAVY:
        return None if room == HEAVY[foreign] else f"only {HEAVY[foreign]} may import {foreign}"
    if foreign != OURS:
        return None
    target = imported.removeprefix(OURS).lstrip(".")
    if target in ("", "__version__"):
        return None
    for part, gaps in GAPS.items():
        for gap in gaps if f"{module}.".startswith(f"{part}.") else ():
            if f"{target}.".startswith(f"{gap}."):
                return f"{part} may not know {gap}"
    if room_of(target) not in ORDER:
        return f"{room_of(target)} is no room of the table"
    if room and ORDER.index(room_of(target)) > ORDER.index(room):
        return f"{room_of(target)} stands above {room}"
    return None


def violations(package: Path) -> list[str]:
    found = []
    for module, path in modules_under(package).items():
        if module and room_of(module) not in ORDER:
            found.append(f"{module}: no room of the table")
            continue
        tree = ast.parse(path.read_text(), str(path))
        for imported in imports_of(tree, module, path.name == "__init__.py"):
            if problem := problem_of(module, imported):
                found.append(f"{module} imports {imported}: {problem}")
    return found


def test_every_import_points_one_way() -> None:
    assert violations(PACKAGE) == []


def test_the_checker_looked_at_every_room_that_exists() -> None:
    rooms = {room_of(module) for module in modules_under(PACKAGE)} - {""}
    assert {"errors", "operators", "traces", "oracle", "subjects", "compare", "commands"} <= rooms


PLANTED = {
    "upwards": ("numerics/x.py", "import apr_falsify.model.geometry", "model stands above numerics"),
    "upwards-by-name": ("model/x.py", "from apr_falsify import formats", "formats stands above model"),
    "lazily": (
        "operators/x.py",
        "def f():\n    from apr_falsify.traces.trace import Trace",
        "traces stands above operators",
    ),
    "relative": ("errors.py", "from . import model", "model stands above errors"),
    "relative-deep": ("compare/x.py", "from ..subjects import embedded", "compare may not know subjects"),
    "relative-package": ("compare/__init__.py", "from ..oracle import run", "compare may not know oracle"),
    "for-types-only": (
        "errors.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from apr_falsify.traces.trace import Trace",
        "traces stands above errors",
    ),
    "by-string": (
        "operators/x.py",
        "import importlib\nimportlib.import_module('apr_falsify.oracle.run')",
        "oracle stands above operators",
    ),
    "comparison-knows-a-runtime": (
        "compare/x.py",
        "from apr_falsify.subjects.embedded import capture",
        "compare may not know subjects",
    ),
    "subject-knows-the-oracle": (
        "subjects/x.py",
        "from apr_falsify.oracle import run",
        "subjects may not know oracle",
    ),
    "subject-knows-comparison": (
        "subjects/x.py",
        "import apr_falsify.compare.layout",
        "compare stands above subjects",
    ),
    "oracle-knows-a-subject": (
        "oracle/x.py",
        "from apr_falsify.subjects import registry",
        "subjects stands above oracle",
    ),
    "torch-outside-the-oracle": (
        "operators/x.py",
        "import torch.nn.functional as F",
        "only oracle may import torch",
    ),
    "transformers-lazily": (
        "commands/x.py",
        "def f():\n    from transformers import AutoConfig",
        "only oracle may import transformers",
    ),
    "faults-choose-a-runtime": (
        "exam/x.py",
        "from apr_falsify.subjects.embedded import capture",
        "exam may not know subjects",
    ),
    "seeding-knows-comparison": (
        "exam/seeding/x.py",
        "import apr_falsify.compare.layout",
        "exam.seeding may not know compare",
    ),
    "symbols-know-traces": (
        "symbols/x.py",
        "from apr_falsify.traces.trace import Trace",
        "symbols may not know traces",
    ),
    "contracts-know-traces": (
        "contracts/x.py",
        "from apr_falsify.traces.trace import Trace",
        "contracts may not know traces",
    ),
    "contracts-know-evidence": (
        "contracts/rules/x.py",
        "from apr_falsify.evidence.bundle import Bundle",
        "contracts may not know evidence",
    ),
    "evidence-knows-rules": (
        "evidence/x.py",
        "from apr_falsify.contracts.rules import names",
        "evidence may not know contracts.rules",
    ),
    "commands-called-from-below": (
        "evidence/x.py",
        "from apr_falsify.commands import main",
        "commands stands above evidence",
    ),
    "a-new-room": ("attic.py", "x = 1", "attic: no room of the table"),
}


@pytest.mark.parametrize(("file", "code", "problem"), PLANTED.values(), ids=list(PLANTED))
def test_a_planted_violation_is_reported(tmp_path: Path, file: str, code: str, problem: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    (found,) = violations(tmp_path)
    assert problem in found


ALLOWED = {
    "downwards": ("operators/x.py", "from apr_falsify.model.stages import STAGES"),
    "within-a-room": ("compare/x.py", "from . import layout\nfrom apr_falsify.compare.metrics import M"),
    "the-oracle-and-torch": ("oracle/x.py", "import torch\nfrom apr_falsify.traces.capture import Sink"),
    "evidence-and-the-contracts-model": ("evidence/x.py", "from apr_falsify.contracts.model import C"),
    "commands-and-runtimes": ("commands/x.py", "from apr_falsify.oracle.run import run"),
    "the-version": ("traces/x.py", "from apr_falsify import __version__"),
}


@pytest.mark.parametrize(("file", "code"), ALLOWED.values(), ids=list(ALLOWED))
def test_what_the_map_allows_is_not_reported(tmp_path: Path, file: str, code: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == []


def circles(package: Path) -> list[set[str]]:
    modules = modules_under(package)
    known = set(modules)
    uses = {
        module: {
            found
            for imported in imports_of(ast.parse(path.read_text()), module, path.name == "__init__.py")
            for name in [imported.removeprefix(f"{OURS}.")]
            for found in ({name, name.rpartition(".")[0]} & known) - {module, ""}
        }
        for module, path in modules.items()
    }
    reached = {module: reach(module, uses) for module in uses}
    groups = {frozenset({b for b in reached[a] if a in reached[b]}) for a in uses}
    return [set(group) for group in groups if group]


def reach(start: str, uses: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = list(uses[start])
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += uses[module]
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Lazily or for types alone neither."""
    assert circles(PACKAGE) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("from apr_falsify.room import b")
    (tmp_path / "room" / "b.py").write_text("def f():\n    from apr_falsify.room.a import x")
    assert circles(tmp_path) == [{"room.a", "room.b"}]


OFFERED_BY = ("api", "oracle.libraries")
"""Modules whose purpose is to hand on names of others."""


def defined_in(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    left: list[ast.stmt] = list(tree.body)
    while left:
        match left.pop():
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {node.id for one in targets for node in ast.walk(one) if isinstance(node, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.If(body=body, orelse=other) | ast.Try(body=body, orelse=other):
                left += [*body, *other]
    return found


def handed_on(package: Path) -> list[str]:
    """Names that are imported from a module which has them from another one itself."""
    modules = modules_under(package)
    defined = {module: defined_in(ast.parse(path.read_text())) for module, path in modules.items()}
    return [
        f"{module} takes {node.module}.{alias.name}"
        for module, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for source in [node.module.removeprefix(f"{OURS}.")]
        if source in defined and source not in OFFERED_BY
        for alias in node.names
        if alias.name not in defined[source] and f"{source}.{alias.name}" not in modules
    ]


def test_every_name_is_imported_from_where_it_is_defined() -> None:
    assert handed_on(PACKAGE) == []


def test_a_name_that_is_handed_on_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("X = 1")
    (tmp_path / "b.py").write_text("from apr_falsify.a import X\nY = X")
    (tmp_path / "c.py").write_text("def f():\n    from apr_falsify.b import X, Y")
    assert handed_on(tmp_path) == ["c takes apr_falsify.b.X"]


@pytest.mark.parametrize("room", ["compare", "contracts", "commands"])
def test_a_large_room_says_in_which_order_to_read_it(room: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    modules = {path.stem for path in (PACKAGE / room).iterdir()} - {"__init__", "__pycache__"}
    assert {module for module in modules if f"``{module}``" not in said} == set()


@pytest.mark.parametrize("tree", ["src", "tests", "scripts", "benchmarks"])
def test_every_file_is_under_400_lines(tree: str) -> None:
    files = list((PACKAGE.parents[1] / tree).rglob("*.py"))
    assert files
    lengths = {
        str(path): len(path.read_text(encoding="utf-8", errors="replace").splitlines()) for path in files
    }
    assert {path: count for path, count in lengths.items() if count > MAX_LINES} == {}


def test_a_name_of_a_class_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path))
    assert len(places) > 300
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def names_of(rooms_left_out: tuple[str, ...]) -> list[str]:
    return [
        f"{OURS}.{module}".rstrip(".")
        for module in modules_under(PACKAGE)
        if room_of(module) not in rooms_left_out
    ]


def test_every_module_imports_without_a_warning() -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    command = [sys.executable, "-W", "error", "-c", code, *names_of(())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_module_but_the_oracle_imports_where_torch_is_absent() -> None:
    script = """
import importlib
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "matplotlib", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv[1:]))
"""
    names = names_of(("oracle",))
    done = run_script(script, *names)
    assert done.stdout.strip() == str(len(names)), done.stderr
