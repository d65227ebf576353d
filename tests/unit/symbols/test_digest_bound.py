"""What evidence is bound to: the code that is named, what that uses, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from apr_falsify.symbols.digest import bind

FILES: Mapping[str, str] = {
    "pyproject.toml": """
[project]
name = "toy"
[project.entry-points.pytest11]
toy = "toy.plugin"
[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["tools"]
""",
    "src/toy/__init__.py": "from toy.deep.kernel import kernel as passed_on\n",
    "src/toy/deep/__init__.py": "",
    "src/toy/deep/kernel.py": "LIMIT = 8\ndef kernel(x): return x * LIMIT\ndef unused(x): return x\n",
    "src/toy/helpers.py": "def by_name(): return 1\ndef by_module(): return 2\ndef other(): return 3\n",
    "src/toy/stars.py": "__all__ = ['starred']\ndef starred(): return 4\n",
    "src/toy/plugin.py": "import pytest\n@pytest.fixture\ndef plugged(): return Lane()\nclass Lane: pass\n",
    "src/toy/effects.py": """
TABLE = {}
def register(f): TABLE[f.__name__] = f
@register
def f(): pass
register(f)
""",
    "src/toy/main.py": '''
"""The module's docstring."""
from __future__ import annotations
import importlib
import numpy as np
from typing import TYPE_CHECKING
import toy.helpers
import toy.helpers as aliased
from toy.helpers import by_name
from .deep import kernel as module
from . import passed_on
from toy.stars import *
if TYPE_CHECKING:
    from toy.effects import TABLE

SCALE: float = 2.0

def local(x):
    """A docstring."""
    return helper(x) * SCALE  # a comment

def helper(x): return np.sum(x)
def uses_from(): return by_name()
def uses_module(): return toy.helpers.by_module()
def uses_alias(): return aliased.by_module()
def uses_relative(): return module.kernel(1)
def uses_passed_on(): return passed_on(1)
def uses_star(): return starred()
def uses_lazily():
    from .effects import f
    return f
def uses_whole_module(): return list(vars(aliased))
def annotated(x: "TABLE") -> int: return x
def by_text(): return importlib.import_module("toy.stars")
def dynamic(name): return importlib.import_module(name)
def evaluated(text): return eval(text)
def missing(): return toy.helpers.gone()

class Base:
    def inherited(self): return by_name()

class Thing(Base):
    FIELD = 3
    def __init__(self): self.stored = 1
    def method(self): return self.other()
    def other(self): return helper(1)

def outer():
    def inner(): return helper(2)
    return inner
''',
    "tools/tool.py": "def tool(): return 5\n",
    "tests/conftest.py": """
import pytest
@pytest.fixture
def model(checkpoint): return checkpoint
@pytest.fixture
def checkpoint(): return weights()
@pytest.fixture
def unrelated(): return 6
@pytest.fixture(autouse=True)
def always(): return 7
def weights(): return 8
def pytest_configure(config): config.x = 1
""",
    "tests/helpers.py": "def compare(a, b): assert a == b\n",
    "tests/test_toy.py": """
import pytest
from helpers import compare
from toy.main import local
import tool
pytestmark = pytest.mark.slow
VALUES = [1, 2]
@pytest.mark.parametrize("x", VALUES)
def test_it(model, plugged, x): compare(local(x), x); tool.tool()
class TestThem:
    def test_within(self, model): pass
    def test_beside(self): pass
@pytest.mark.usefixtures("unrelated")
def test_by_name(): pass
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def edit(project: Path, file: str, old: str, new: str) -> None:
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new, 1))


MAIN = "src/toy/main.py"
HELPERS = "src/toy/helpers.py"
DEEP = "src/toy/deep/kernel.py"
EFFECTS = "src/toy/effects.py"
KERNEL = {"src/toy/deep/kernel.py::kernel", "src/toy/deep/kernel.py::LIMIT"}

USES: Mapping[str, set[str]] = {
    "local": {f"{MAIN}::helper", f"{MAIN}::SCALE"},
    "uses_from": {f"{HELPERS}::by_name"},
    "uses_module": {f"{HELPERS}::by_module"},
    "uses_alias": {f"{HELPERS}::by_module"},
    "uses_relative": KERNEL,
    "uses_passed_on": KERNEL,
    "uses_star": {"src/toy/stars.py::starred"},
    "uses_lazily": {
        "src/toy/effects.py::f",
        "src/toy/effects.py::register",
        "src/toy/effects.py::TABLE",
        "src/toy/effects.py::<module>",
    },
    "uses_whole_module": {f"{HELPERS}::by_name", f"{HELPERS}::by_module", f"{HELPERS}::other"},
    "annotated": {
        "src/toy/effects.py::TABLE",
        "src/toy/effects.py::<module>",
        "src/toy/effects.py::f",
        "src/toy/effects.py::register",
    },
    "by_text": {"src/toy/stars.py::starred", "src/toy/stars.py::__all__"},
    "Thing": {f"{MAIN}::Base", f"{MAIN}::helper", f"{HELPERS}::by_name"},
    "Thing.method": {f"{MAIN}::Thing", f"{MAIN}::Base", f"{MAIN}::helper", f"{HELPERS}::by_name"},
    "Thing.FIELD": {f"{MAIN}::Thing", f"{MAIN}::Base", f"{MAIN}::helper", f"{HELPERS}::by_name"},
    "Thing.stored": {f"{MAIN}::Thing", f"{MAIN}::Base", f"{MAIN}::helper", f"{HELPERS}::by_name"},
    "Thing.inherited": {f"{MAIN}::Thing", f"{MAIN}::Base", f"{MAIN}::helper", f"{HELPERS}::by_name"},
    "outer.inner": {f"{MAIN}::outer", f"{MAIN}::helper"},
    "SCALE": set(),
}


@pytest.mark.parametrize(("name", "uses"), USES.items(), ids=list(USES))
def test_what_a_name_uses_is_bound_with_it_and_nothing_else(project: Path, name: str, uses: set[str]) -> None:
    functions, unbound = bind(project, [(MAIN, name)])
    assert set(functions) == {f"{MAIN}::{name}"} | uses
    assert unbound == {}


CONFTEST = "tests/conftest.py"
TEST = "tests/test_toy.py"
ALWAYS = {f"{CONFTEST}::always", f"{CONFTEST}::pytest_configure", "tests/test_toy.py::pytestmark"}
TESTS: Mapping[str, set[str]] = {
    "test_it": {
        f"{CONFTEST}::model",
        f"{CONFTEST}::checkpoint",
        f"{CONFTEST}::weights",
        "tests/helpers.py::compare",
        "src/toy/plugin.py::plugged",
        "src/toy/plugin.py::Lane",
        "tests/test_toy.py::VALUES",
        "tools/tool.py::tool",
        f"{MAIN}::local",
        f"{MAIN}::helper",
        f"{MAIN}::SCALE",
    },
    "test_by_name": {f"{CONFTEST}::unrelated"},
    "TestThem::test_beside": {
        f"{CONFTEST}::model",
        f"{CONFTEST}::checkpoint",
        f"{CONFTEST}::weights",
        f"{TEST}::TestThem",
    },
}


@pytest.mark.parametrize(("name", "uses"), TESTS.items(), ids=list(TESTS))
def test_a_test_is_bound_with_its_fixtures_as_pytest_finds_them(
    project: Path, name: str, uses: set[str]
) -> None:
    functions, unbound = bind(project, [("tests/test_toy.py", name)])
    assert set(functions) == {f"tests/test_toy.py::{name.replace('::', '.')}"} | uses | ALWAYS
    assert unbound == {}


STILL = {
    "comment": (MAIN, "# a comment", "# another comment"),
    "docstring": (MAIN, '"""A docstring."""', '"""Other words."""'),
    "blank line": (MAIN, "SCALE: float", "\n\nSCALE: float"),
    "line break": (MAIN, "helper(x) * SCALE", "(helper(x)\n        * SCALE)"),
    "unused code": (MAIN, "def uses_from(): return by_name()", "def uses_from(): return 0"),
    "unused file": (HELPERS, "return 3", "return 4"),
    "import that it does not use": (MAIN, "from toy.helpers import by_name", "from toy.helpers import other"),
}


@pytest.mark.parametrize(("file", "old", "new"), STILL.values(), ids=list(STILL))
def test_a_change_that_it_does_not_rest_on_leaves_it_fresh(
    project: Path, file: str, old: str, new: str
) -> None:
    before = bind(project, [(MAIN, "local")])
    edit(project, file, old, new)
    assert bind(project, [(MAIN, "local")]) == before


STALE = {
    "its own line": (MAIN, "local", "helper(x) * SCALE", "helper(x) / SCALE", f"{MAIN}::local"),
    "what it calls": (MAIN, "local", "np.sum(x)", "np.prod(x)", f"{MAIN}::helper"),
    "a constant": (MAIN, "local", "SCALE: float = 2.0", "SCALE: float = 2.5", f"{MAIN}::SCALE"),
    "whose sum it is": (MAIN, "local", "import numpy as np", "import torch as np", f"{MAIN}::helper"),
    "two files away": (DEEP, "uses_passed_on", "LIMIT = 8", "LIMIT = 9", f"{DEEP}::LIMIT"),
    "a method of its class": (MAIN, "Thing.method", "return helper(1)", "return helper(3)", f"{MAIN}::Thing"),
    "its base class": (MAIN, "Thing.method", "by_name()\n\nclass", "0\n\nclass", f"{MAIN}::Base"),
    "what importing does": (EFFECTS, "uses_lazily", "\nregister(f", "\nregister(1", f"{EFFECTS}::<module>"),
}


@pytest.mark.parametrize(("file", "name", "old", "new", "key"), STALE.values(), ids=list(STALE))
def test_a_change_of_what_it_rests_on_shows_under_its_name(
    project: Path, file: str, name: str, old: str, new: str, key: str
) -> None:
    before, _ = bind(project, [(MAIN, name)])
    edit(project, file, old, new)
    after, _ = bind(project, [(MAIN, name)])
    assert key in {one for one in before if before.get(one) != after.get(one)}


def test_a_name_that_moves_to_another_module_is_bound_there(project: Path) -> None:
    edit(project, MAIN, "from toy.helpers import by_name", "from toy.stars import starred as by_name")
    functions, _ = bind(project, [(MAIN, "uses_from")])
    assert set(functions) == {f"{MAIN}::uses_from", "src/toy/stars.py::starred"}


TOLD = {
    "dynamic": "by a name that only a run shows",
    "evaluated": "evaluates text",
    "missing": "uses gone of src/toy/helpers.py, which does not define it",
}


@pytest.mark.parametrize(("name", "words"), TOLD.items(), ids=list(TOLD))
def test_what_cannot_be_followed_is_told(project: Path, name: str, words: str) -> None:
    functions, unbound = bind(project, [(MAIN, name)])
    assert f"{MAIN}::{name}" in functions
    assert words in unbound[f"{MAIN}::{name}"]


NOT_BOUND = {
    "absent": (MAIN, "absent", "does not define it"),
    "absent-method": (MAIN, "outer.absent", "does not define it"),
    "no-file": ("src/toy/nowhere.py", "f", "not in the project"),
    "rust": ("src/lib.rs", "f", "no Python"),
    "outside": ("../outside.py", "f", "not in the project"),
    "does-not-parse": ("src/broken.py", "f", "does not parse"),
}


@pytest.mark.parametrize(("file", "name", "why"), NOT_BOUND.values(), ids=list(NOT_BOUND))
def test_what_cannot_be_bound_is_told_with_the_reason(project: Path, file: str, name: str, why: str) -> None:
    (project / "src" / "broken.py").write_text("def f(:\n")
    (project.parent / "outside.py").write_text("def f(): pass\n")
    functions, unbound = bind(project, [(file, name)])
    assert functions == {}
    assert why in unbound[f"{file}::{name}"]


def test_a_file_that_is_named_alone_is_bound_with_all_it_defines(project: Path) -> None:
    functions, _ = bind(project, [(HELPERS, "")])
    assert [key.partition("::")[2] for key in functions] == ["by_module", "by_name", "other"]


def test_a_name_that_a_file_only_passes_on_is_bound_where_it_is_defined(project: Path) -> None:
    functions, unbound = bind(project, [("src/toy/__init__.py", "passed_on")])
    assert set(functions) == KERNEL
    assert unbound == {}


def test_modules_that_import_each_other_are_bound_once(project: Path) -> None:
    (project / "src" / "a.py").write_text("import b\ndef f(): return b.g()\n")
    (project / "src" / "b.py").write_text("import a\ndef g(): return a.f()\n")
    functions, _ = bind(project, [("src/a.py", "f")])
    assert set(functions) == {"src/a.py::f", "src/b.py::g"}
