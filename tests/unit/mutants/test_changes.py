"""What ``scripts/mutate.py`` changes, how it names that, and how it puts it into code that is running."""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def changes_of(tmp_path: Path, body: str) -> list[str]:
    from mutants.places import mutants_of

    path = tmp_path / "m.py"
    path.write_text(body)
    return [mutant.change for mutant in mutants_of(path, tmp_path)]


def of_expression(tmp_path: Path, expression: str) -> set[str]:
    """Return what is changed in ``x = expression`` within a function."""
    return set(changes_of(tmp_path, f"def f(a, b, c):\n    x = {expression}\n"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + b", {"a + b -> a - b"}),
        ("a / b", {"a / b -> a * b"}),
        ("a < b", {"a < b -> a <= b", "a < b -> a >= b"}),
        ("a is not None", {"a is not None -> a is None"}),
        ("a and b", {"a and b -> a or b"}),
        ("not a", {"not a -> a"}),
        ("-a", {"-a -> a"}),
        ("f(9)", {"f(9) -> f(10)", "f(9) -> f(8)"}),
        ("f(0.5)", {"f(0.5) -> f(1.0)"}),
        ("f(True)", {"f(True) -> f(False)"}),
        ("f(a, key=b)", {"f(a, key=b) -> f(a)"}),
        ("a[b:c]", {"a[b:c] -> a[:c]", "a[b:c] -> a[b:]"}),
        ("a if b else c", {"a if b else c -> a if not b else c"}),
        ("[a for a in b if c]", {"[a for a in b if c] -> [a for a in b if not c]"}),
    ],
)
def test_an_expression_has_the_usual_changes(tmp_path: Path, expression: str, expected: set[str]) -> None:
    assert of_expression(tmp_path, expression) == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("return a", "return a -> return None"),
        ("g(a)", "g(a) -> pass"),
        ("a[b] = c", "a[b] = c -> pass"),
        ("a += b", "a += b -> a -= b"),
        ("raise a", "raise a -> pass"),
        ("if a: g(b)", "if a: -> if not a:"),
        ("while a: g(b)", "while a: -> while not a:"),
    ],
)
def test_a_statement_has_the_usual_changes(tmp_path: Path, statement: str, expected: str) -> None:
    assert expected in changes_of(tmp_path, f"def f(a, b, c):\n    {statement}\n")


def test_a_size_that_numpy_works_out_is_not_made_another_such_size(tmp_path: Path) -> None:
    assert of_expression(tmp_path, "a.reshape(b, -1)") == {"a.reshape(b, -1) -> a.reshape(b, -0)"}


@pytest.mark.parametrize(
    "statement",
    [
        "'a sentence'",
        "x = f'{a + 1} of {b}'",
        "x = ', '.join(a[1:])",
        "x = zip(a, b, strict=True)",
        "x = open(a, encoding='utf-8')",
        "x = 'a' + b",
        "x: dict[1, 2] = a",
        "x = isinstance(a, b | c)",
        "return None",
        "return",
    ],
)
def test_texts_types_and_what_no_test_should_pin_are_not_changed(tmp_path: Path, statement: str) -> None:
    assert changes_of(tmp_path, f"@d(1)\ndef f(a: int = b, *c: 1) -> 1:\n    {statement}\n") == []


def test_what_is_raised_is_a_message(tmp_path: Path) -> None:
    assert changes_of(tmp_path, "def f(a):\n    raise E(a + 1)\n") == ["raise E(a + 1) -> pass"]


def test_a_name_survives_moved_lines_and_tells_equal_places_apart(tmp_path: Path) -> None:
    body = "class C:\n    def f(self, a):\n        return g(a + 1, a + 1)\n"
    first = changes_of(tmp_path, body)
    assert "a + 1 -> a - 1" in first
    assert "a + 1 -> a - 1 (#2)" in first
    assert changes_of(tmp_path, f"# moved\n\nX = ()\n\n{body}") == first


def test_a_long_expression_is_shown_around_the_change(tmp_path: Path) -> None:
    names = ", ".join(f"name{number}" for number in range(40))
    for change in of_expression(tmp_path, f"f({names}, 7, {names})"):
        before, after = change.split(" -> ")
        assert before.startswith("... ")
        assert before.endswith(" ...")
        assert ", 7, name0" in before
        assert after in (before.replace(", 7,", ", 8,"), before.replace(", 7,", ", 6,"))


def test_lines_are_those_that_must_run(tmp_path: Path) -> None:
    from mutants.places import mutants_of

    path = tmp_path / "m.py"
    path.write_text(
        "LIMIT = 3\n\n\ndef f(a=1):\n    if (\n        a < 2\n    ):\n"
        "        return g(\n            a\n        )\n"
    )
    lines = {mutant.change: list(mutant.lines) for mutant in mutants_of(path, tmp_path)}
    assert lines["LIMIT = 3 -> LIMIT = 4"] == []
    assert lines["def f(a=1): -> def f(a=2):"] == []
    assert lines["a < 2 -> a <= 2"] == [6]
    assert lines["return g(a) -> return None"] == [8, 9, 10]


def test_a_constant_is_noticed_where_it_is_used_also_by_way_of_a_table(tmp_path: Path) -> None:
    from mutants.places import Uses

    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("A = 1\nB = {0: A}\nC = 2\n\n\ndef f():\n    return B\n")
    two.write_text("import one\n\n\ndef g():\n    return one.A\n")
    uses = Uses([one, two], tmp_path)
    assert uses.of({"A"}) == {"one.py": {7}, "two.py": {5}}
    assert uses.of({"C"}) == {}


# --- put in place -------------------------------------------------------------------------------------

MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from functools import cache, partial

LIMIT = 3


def limited(a, most=5):
    return min(a, most)


@cache
def cached(a):
    return a + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    size: int = 7

    @property
    def doubled(self):
        return self.size * 2


TABLE = {"row": lambda a: a * 10}
SUM = limited(LIMIT * 2, 100)
AT_MOST_4 = partial(limited, most=4)
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that is imported, and another that took names from it."""
    found, user = types.ModuleType("apr_falsify.made_up"), types.ModuleType("tests.made_up_user")
    found.__file__ = "made_up.py"
    monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setitem(sys.modules, user.__name__, user)
    exec(MODULE, vars(found))
    vars(user).update(
        {
            name: vars(found)[name]
            for name in ("LIMIT", "limited", "cached", "Row", "TABLE", "SUM", "AT_MOST_4")
        }
    )
    return user


def put(tmp_path: Path, change: str) -> None:
    from mutants.graft import clear_caches, graft
    from mutants.places import mutants_of

    path = tmp_path / "src" / "apr_falsify" / "made_up.py"
    path.parent.mkdir(parents=True)
    path.write_text(MODULE)
    (mutant,) = [each for each in mutants_of(path, tmp_path) if each.change == change]
    clear_caches()
    graft(mutant)


def test_a_function_that_others_hold_is_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "return min(a, most) -> return None")
    assert module.limited(9) is None


def test_the_default_of_a_function_that_others_hold_is_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "def limited(a, most=5): -> def limited(a, most=6):")
    assert module.limited(9) == 6


def test_a_cached_function_forgets_what_it_gave(module: Any, tmp_path: Path) -> None:
    assert module.cached(1) == 2
    put(tmp_path, "a + 1 -> a - 1")
    assert module.cached(1) == 0


def test_methods_and_fields_of_a_class_that_others_hold_are_changed(module: Any, tmp_path: Path) -> None:
    row = module.Row(size=1)
    put(tmp_path, "self.size * 2 -> self.size * 3")
    assert (row.doubled, module.Row().size) == (3, 7)


def test_the_default_of_a_field_is_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "size: int = 7 -> size: int = 8")
    assert module.Row().size == 8


def test_a_constant_and_a_table_that_others_took_are_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "LIMIT = 3 -> LIMIT = 4")
    assert module.LIMIT == 4


def test_what_is_made_of_a_constant_or_by_a_function_when_the_module_is_imported_is_made_anew(
    module: Any, tmp_path: Path
) -> None:
    assert module.SUM == 6
    put(tmp_path, "LIMIT = 3 -> LIMIT = 4")
    assert module.SUM == 8


def test_what_a_function_made_when_the_module_was_imported_is_made_anew(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "return min(a, most) -> return None")
    assert module.SUM is None


def test_a_function_within_a_table_is_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "a * 10 -> a / 10")
    assert module.TABLE["row"](5) == 0.5


def test_what_is_given_to_a_partial_is_changed(module: Any, tmp_path: Path) -> None:
    put(tmp_path, "partial(limited, most=4) -> partial(limited, most=5)")
    assert (module.AT_MOST_4(9), module.limited(9, 7)) == (5, 7)


def test_a_change_that_is_no_code_is_refused(module: Any, tmp_path: Path) -> None:
    from mutants.graft import NotPossible, graft
    from mutants.places import Mutant, Slot

    statement = ast.parse("X = 1 + 'a'").body[0]
    holder = ast.Module(body=[statement], type_ignores=[])
    slot = Slot(parent=holder, name="body", index=0)
    mutant = Mutant(
        file="src/apr_falsify/made_up.py",
        function="<module>",
        change="",
        kind="",
        lines=range(0),
        statement=statement,
        rest=(),
        slot=slot,
        new=statement,
    )
    with pytest.raises(NotPossible, match="TypeError"):
        graft(mutant)
