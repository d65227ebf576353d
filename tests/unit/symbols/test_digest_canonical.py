"""The canonical form of Python code: blind to layout, equal on every Python, and to nothing else."""

from __future__ import annotations

import ast
import hashlib
import io
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apr_falsify.symbols import canonical as module
from apr_falsify.symbols.canonical import canonical, digest_of
from tests.unit.helpers import PACKAGE

SAMPLE = Path(__file__).with_name("every_construct.txt")
GOLDEN = "207b8c8d766d72d904a4db49bb1cc4c5cb470b3aa3d92c9ef397aaf5a52ea952"
"""Of the sample, on CPython 3.11.7, 3.12.1 and 3.13.0: what a bundle was written with must never change."""


def form(code: str) -> str:
    return canonical(ast.parse(code))


SAME = {
    "comment": ("x = 1", "# why\nx = 1  # and how"),
    "blank lines": ("x = 1\ny = 2", "\n\nx = 1\n\n\ny = 2\n"),
    "blanks": ("f(a,b)[1:2]", "f( a, b )[ 1 : 2 ]"),
    "line breaks": ("f(a, b)", "f(\n    a,\n    b,\n)"),
    "backslash": ("x = a + b", "x = a \\\n  + b"),
    "parentheses": ("x = a + b * c", "x = (a + (b * c))"),
    "quotes": ("x = 'a'", 'x = """a"""'),
    "adjacent strings": ("x = 'ab'", "x = 'a' 'b'"),
    "escapes": ("x = 'A'", r"x = '\x41'"),
    "u prefix": ("x = 'a'", "x = u'a'"),
    "digits": ("x = 1000 + 16", "x = 1_000 + 0x10"),
    "semicolons": ("x = 1; y = 2", "x = 1\ny = 2"),
    "one line": ("if a: b", "if a:\n    b"),
    "elif": ("if a: b\nelif c: d", "if a: b\nelse:\n    if c: d"),
    "docstring": ('def f():\n  "x"\n  return 1', "def f():\n  return 1"),
    "docstring of a constant": ('X = 1\n"what it is"', "X = 1"),
    "cut f-string": ("f'a{x}b'", "f'a' '' f'{x}' 'b'"),
    "type comment": ("x = 1  # type: int", "x = 1"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=list(SAME))
def test_layout_leaves_no_trace(one: str, other: str) -> None:
    assert form(one) == form(other)


OTHER = {
    "name": ("x = a", "x = b"),
    "number": ("x = 1", "x = 2"),
    "kind of number": ("x = 1", "x = 1.0"),
    "bool and number": ("x = True", "x = 1"),
    "text and bytes": ("x = 'a'", "x = b'a'"),
    "text and name": ("x = 'a'", "x = a"),
    "operator": ("x = a + b", "x = a - b"),
    "comparison": ("a < b", "a <= b"),
    "order": ("f(a, b)", "f(b, a)"),
    "grouping": ("x = a + b * c", "x = (a + b) * c"),
    "tuple and list": ("x = a, b", "x = [a, b]"),
    "default": ("def f(a=1): pass", "def f(a=None): pass"),
    "no default": ("def f(a, b=1): pass", "def f(a, b): pass"),
    "which default": ("def f(*, a=1, b): pass", "def f(*, a, b=1): pass"),
    "keyword only": ("def f(a, b): pass", "def f(a, *, b): pass"),
    "positional only": ("def f(a, b): pass", "def f(a, /, b): pass"),
    "annotation": ("def f(a: int): pass", "def f(a: str): pass"),
    "decorator": ("@a\ndef f(): pass", "def f(): pass"),
    "return value": ("def f(): return None", "def f(): return"),
    "async": ("async def f(): pass", "def f(): pass"),
    "body": ("def f():\n  a\n  b", "def f():\n  b\n  a"),
    "where else ends": ("if a:\n  b\nelse:\n  c\nd", "if a:\n  b\nelse:\n  c\n  d"),
    "mapping key": ("{**a}", "{None: a}"),
    "conversion": ("f'{x!r}'", "f'{x!s}'"),
    "format": ("f'{x:>3}'", "f'{x:<3}'"),
    "f-string and text": ("f'{x}'", "'{x}'"),
    "constant of an f-string": ("f'a{x}'", "f'b{x}'"),
    "import name": ("import a", "import b"),
    "import as": ("import a", "import a as b"),
    "relative import": ("from . import a", "from .. import a"),
    "string as an argument": ("f('x')", "f('y')"),
    "slice": ("a[1:]", "a[:1]"),
    "starred": ("f(*a)", "f(a)"),
    "global": ("def f():\n  global a\n  a = 1", "def f():\n  a = 1"),
    "except": ("try: pass\nexcept A: pass", "try: pass\nexcept* A: pass"),
}


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=list(OTHER))
def test_code_that_does_something_else_has_another_form(one: str, other: str) -> None:
    assert form(one) != form(other)


def changed(token: tokenize.TokenInfo) -> str | None:
    """Return other text for a token, ``None`` for what is layout."""
    if token.type == tokenize.NUMBER:
        return token.string + "1"
    if token.type == tokenize.NAME:
        return {"True": "False", "and": "or", "or": "and", "is": "in"}.get(token.string, token.string + "_")
    if token.type == tokenize.STRING:
        return token.string[:-1] + "~" + token.string[-1] if not token.string.endswith('"""') else None
    return {"+": "-", "*": "/", "<": ">", "==": "!=", "-": "+", "(": "[", ".": ","}.get(token.string)


def mutants(source: str) -> Iterator[str]:
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        new = changed(token)
        if new is not None and token.start[0] == token.end[0]:
            row, start, end = token.start[0] - 1, token.start[1], token.end[1]
            line = lines[row][:start] + new + lines[row][end:]
            yield "".join([*lines[:row], line, *lines[row + 1 :]])


def test_every_changed_token_of_a_real_module_changes_the_form() -> None:
    source = (PACKAGE / "compare" / "published.py").read_text()
    own, count = form(source), 0
    for mutant in mutants(source):
        try:
            found = form(mutant)
        except SyntaxError:
            continue
        assert found != own, mutant
        count += 1
    assert count > 120


def test_a_module_that_reads_docstrings_keeps_them() -> None:
    one, other = (ast.parse(f'def f():\n  "{text}"') for text in "ab")
    assert digest_of([one], strings=True) != digest_of([other], strings=True)
    assert digest_of([one]) == digest_of([other])


def test_the_digest_of_the_sample_is_the_one_that_older_bundles_hold() -> None:
    assert digest_of([ast.parse(SAMPLE.read_text())]) == GOLDEN


ELSEWHERE = """
import ast, sys, importlib.util
spec = importlib.util.spec_from_file_location("canonical", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for path in sys.argv[2:]:
    print(module.digest_of([ast.parse(open(path, encoding="utf-8").read())], strings=True))
"""


def interpreter(version: str) -> str | None:
    """Return a Python of that version, ``None`` where the machine has none that runs."""
    others = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for found in (*map(str, others), shutil.which(f"python{version}")):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        if found is not None:
            done = subprocess.run([found, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                return found
    return None


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_another_python_gives_the_same_digests(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("data", "__pycache__"))
    paths = [SAMPLE, *sorted(tmp_path.rglob("*.py"))]
    command = [python, "-W", "ignore", "-c", ELSEWHERE, str(module.__file__), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here = [digest_of([ast.parse(path.read_text())], strings=True) for path in paths]
    assert dict(zip(paths, done.stdout.split(), strict=True)) == dict(zip(paths, here, strict=True))


class _Type(ast.AST):
    """A node of a newer version, made by hand: 3.11 has none."""

    _fields = ("name", "bound", "default_value")


def newer(code: str, change: Callable[[ast.stmt], None]) -> str:
    """Return the form of code whose tree was altered as a newer Python makes it."""
    tree = ast.parse(code)
    change(tree.body[0])
    return canonical(tree)


def add_field(node: ast.AST, name: str, value: object) -> None:
    """Give a node a field that its class of a newer version has."""
    kind = type(type(node).__name__, (type(node),), {"_fields": (name, *type(node)._fields)})
    node.__class__ = kind
    setattr(node, name, value)


@pytest.mark.parametrize("code", ["def f(): pass", "async def f(): pass", "class A: pass"])
def test_fields_that_newer_versions_add_leave_no_trace_where_they_are_empty(code: str) -> None:
    assert newer(code, lambda node: add_field(node, "type_params", [])) == form(code)  # 3.12
    assert newer(code, lambda node: add_field(node, "default_value", None)) == form(code)  # 3.13


def test_type_parameters_of_newer_versions_are_seen() -> None:
    one = newer("def f(): pass", lambda node: add_field(node, "type_params", [_named("T")]))
    other = newer("def f(): pass", lambda node: add_field(node, "type_params", [_named("U")]))
    assert len({one, other, form("def f(): pass")}) == 3


def _named(name: str) -> _Type:
    node = _Type()
    node.name, node.bound, node.default_value = name, None, None
    return node


def test_an_fstring_cut_as_312_cuts_it_has_the_form_of_311() -> None:
    whole = form("f'a{x:b}c'")
    tree = ast.parse("f'a{x:b}c'")
    joined = tree.body[0].value
    spec = joined.values[1].format_spec
    spec.values = [ast.Constant(value=""), *spec.values, ast.Constant(value="")]
    joined.values = [ast.Constant(value=""), *joined.values, ast.Constant(value="")]
    assert canonical(tree) == whole


def test_the_text_is_stated_in_a_way_that_others_can_compute() -> None:
    text = "Module(body=[Assign(targets=[Name(id=str:'x';),];value=int:ff;),];)"
    assert form("x = 255") == text
    assert (
        digest_of([ast.parse("x = 255")]) == hashlib.sha256(f"{module.SCHEMA}\n{text}".encode()).hexdigest()
    )


def test_code_that_is_nested_beyond_measure_raises_a_recursion_error() -> None:
    with pytest.raises(RecursionError):
        canonical(ast.parse("+".join(["x"] * (sys.getrecursionlimit() * 2))))
