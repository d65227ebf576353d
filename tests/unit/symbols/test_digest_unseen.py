"""Code that acts on a test without being named by it: what importing runs, and what pytest brings along.

Each case is a project in which the test binds something, and a change after which the test measures other
code. The change is real: a test that ran before and after would see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from apr_falsify.symbols.digest import bind

TEST = "tests/test_a.py"
PYPROJECT = "[tool.pytest.ini_options]\npythonpath = ['src', 'tests']\n"
OPS = "def softmax(x): return x\n"
USES_OPS = "import port.ops\ndef test_x(): assert port.ops.softmax(1)\n"
REGISTRY = "T = {}\ndef register(f):\n    T[f.__name__] = f\n    return f\ndef get(name): return T[name]\n"
HANDLER = "from port.registry import register\n@register\ndef handler(): return 1\n"
FIXTURE = "import pytest\n@pytest.fixture\ndef model(): return 1\n"
ASKS = "def test_x(model): assert model\n"

Case = tuple[Mapping[str, str], str, tuple[str, str]]
CASES: Mapping[str, Case] = {
    "a conftest patches on import": (
        {TEST: USES_OPS, "tests/conftest.py": "import port.ops\nport.ops.softmax = abs\n"},
        "tests/conftest.py",
        ("abs", "round"),
    ),
    "an import for its effect": (
        {
            TEST: "import patches\n" + USES_OPS,
            "tests/patches.py": "import port.ops\nport.ops.softmax = abs\n",
        },
        "tests/patches.py",
        ("abs", "round"),
    ),
    "a handler in a registry": (
        {
            TEST: "import port.handlers\nfrom port import registry\n"
            "def test_x(): assert registry.get('handler')()\n",
            "src/port/registry.py": REGISTRY,
            "src/port/handlers.py": HANDLER,
        },
        "src/port/handlers.py",
        ("return 1", "return 2"),
    ),
    "a handler that the package imports": (
        {
            TEST: "from port import registry\ndef test_x(): assert registry.get('handler')()\n",
            "src/port/__init__.py": "from . import handlers\n",
            "src/port/registry.py": REGISTRY,
            "src/port/handlers.py": HANDLER,
        },
        "src/port/handlers.py",
        ("return 1", "return 2"),
    ),
    "a subclass that its base finds": (
        {
            TEST: "import port.impl\nfrom port.base import B\n"
            "def test_x(): assert B.__subclasses__()[0]().f()\n",
            "src/port/base.py": "class B: pass\n",
            "src/port/impl.py": "from port.base import B\nclass I(B):\n    def f(self): return 1\n",
        },
        "src/port/impl.py",
        ("return 1", "return 2"),
    ),
    "a condition on the module's name": (
        {TEST: USES_OPS, "src/port/ops.py": OPS + "if __name__ != 'x':\n    softmax.__code__ = abs\n"},
        "src/port/ops.py",
        ("abs", "round"),
    ),
    "what runs where types are not checked": (
        {
            TEST: USES_OPS,
            "src/port/ops.py": "from typing import TYPE_CHECKING\n"
            + OPS
            + "if TYPE_CHECKING:\n    pass\nelse:\n    print(1)\n",
        },
        "src/port/ops.py",
        ("print(1)", "print(2)"),
    ),
    "a context around an import": (
        {TEST: USES_OPS, "src/port/ops.py": OPS + "with open('a'):\n    import math\n"},
        "src/port/ops.py",
        ("'a'", "'b'"),
    ),
    "a loop that sets by name": (
        {TEST: USES_OPS, "src/port/ops.py": OPS + "for n in ('softmax',):\n    globals()[n] = abs\n"},
        "src/port/ops.py",
        ("abs", "round"),
    ),
    "a name that a match binds": (
        {
            TEST: USES_OPS,
            "src/port/ops.py": "def g(x): return 1\n"
            "match g:\n    case h: pass\ndef softmax(x): return h(x)\n",
        },
        "src/port/ops.py",
        ("return 1", "return 2"),
    ),
    "a fixture that a conftest imports": (
        {TEST: ASKS, "tests/conftest.py": "from helpers import model\n", "tests/helpers.py": FIXTURE},
        "tests/helpers.py",
        ("return 1", "return 2"),
    ),
    "a fixture under another name, through a package": (
        {
            TEST: ASKS,
            "tests/conftest.py": "from port import own as model\n",
            "src/port/__init__.py": "from .fixtures import own\n",
            "src/port/fixtures.py": FIXTURE.replace("model", "own"),
        },
        "src/port/fixtures.py",
        ("return 1", "return 2"),
    ),
    "all fixtures of a module": (
        {TEST: ASKS, "tests/conftest.py": "from helpers import *\n", "tests/helpers.py": FIXTURE},
        "tests/helpers.py",
        ("return 1", "return 2"),
    ),
    "an imported fixture that nobody asks for": (
        {
            TEST: USES_OPS,
            "tests/conftest.py": "from helpers import model\n",
            "tests/helpers.py": FIXTURE.replace("fixture", "fixture(autouse=True)"),
        },
        "tests/helpers.py",
        ("return 1", "return 2"),
    ),
    "a module of pytest_plugins": (
        {TEST: ASKS, "conftest.py": "pytest_plugins = ['port.fixtures']\n", "src/port/fixtures.py": FIXTURE},
        "src/port/fixtures.py",
        ("return 1", "return 2"),
    ),
    "a fixture of a fixture in such a module": (
        {
            TEST: "def test_x(outer): assert outer\n",
            "conftest.py": "pytest_plugins = ['port.fixtures']\n",
            "src/port/fixtures.py": FIXTURE + "@pytest.fixture\ndef outer(model): return model\n",
        },
        "src/port/fixtures.py",
        ("return 1", "return 2"),
    ),
    "a fixture that the settings use": (
        {
            TEST: USES_OPS,
            "tests/conftest.py": FIXTURE,
            "pyproject.toml": PYPROJECT + "usefixtures = ['model']\n",
        },
        "tests/conftest.py",
        ("return 1", "return 2"),
    ),
}


def project(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in {"pyproject.toml": PYPROJECT, "src/port/ops.py": OPS, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_acts_on_a_test_without_being_named_is_bound(tmp_path: Path, case: Case) -> None:
    files, changed, (old, new) = case
    before, _ = bind(project(tmp_path, files), [(TEST, "test_x")])
    (tmp_path / changed).write_text(files[changed].replace(old, new), encoding="utf-8")
    after, _ = bind(tmp_path, [(TEST, "test_x")])
    assert {name.partition("::")[0] for name in before if before[name] != after[name]} == {changed}


OTHER = "src/port/other.py"
FRESH: Mapping[str, Case] = {
    "a module that defines more than is used": (
        {TEST: USES_OPS, "tests/conftest.py": "import port.other\nport.other.f()\n"},
        OTHER,
        ("pass", "return 2"),
    ),
    "a package that passes on more": (
        {TEST: USES_OPS, "src/port/__init__.py": "from .other import more\n"},
        OTHER,
        ("pass", "return 2"),
    ),
    "what runs as a program": (
        {TEST: "import port.other\ndef test_x(): assert port.other.f()\n"},
        OTHER,
        ("more()", "print(1)"),
    ),
}


@pytest.mark.parametrize("case", FRESH.values(), ids=list(FRESH))
def test_what_cannot_act_on_it_leaves_it_fresh(tmp_path: Path, case: Case) -> None:
    files, changed, (old, new) = case
    other = "def f(): return 1\ndef more(): pass\nif __name__ == '__main__':\n    more()\n"
    before = bind(project(tmp_path, {OTHER: other, **files}), [(TEST, "test_x")])
    assert old in other
    (tmp_path / changed).write_text(new.join(other.rsplit(old, 1)), encoding="utf-8")
    assert bind(tmp_path, [(TEST, "test_x")]) == before


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("def test_x(request): request.getfixturevalue(NAME)\n", "asks for a fixture by a name"),
        ("import importlib.util as u\ndef test_x(): u.spec_from_file_location('a', 'a.py')\n", "by its path"),
    ],
    ids=["a fixture", "a file"],
)
def test_what_only_a_run_shows_is_told(tmp_path: Path, test: str, words: str) -> None:
    _, unbound = bind(project(tmp_path, {TEST: "NAME = 'a'\n" + test}), [(TEST, "test_x")])
    assert words in unbound[f"{TEST}::test_x"]
