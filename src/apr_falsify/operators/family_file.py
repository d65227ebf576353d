"""A user's own families, from a Python file in the form of those in ``model/families/``.

The file is code, and it is run. What it defines is found by type: every :class:`Family`, and every
:class:`Operator` that a node of theirs uses beside those of the table. What goes wrong in its functions later
is reported as an error of the file.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from apr_falsify.errors import AprFalsifyError, FamilyError, nearest
from apr_falsify.model.families import FAMILIES, add_families
from apr_falsify.model.families.of_users import FamilyFile, file_at
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Node, Nodes
from apr_falsify.model.settings import Config
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import canonical_shape
from apr_falsify.operators.operator import Array, Inputs, Operator
from apr_falsify.operators.roundoff import F64, Ins, NoisySite
from apr_falsify.operators.site import Site
from apr_falsify.operators.table import OPERATORS, check_free, check_operators, keep_operators

PAGE = "docs/adding-a-family.md"

_T = TypeVar("_T")


def load_families(path: Path) -> tuple[Family, ...]:
    """Run the Python file ``path``, and make the families and operators known that it defines.

    A file is run once. One that was edited since is run again, and takes the place of what it brought.

    Raises:
        FamilyError: it cannot be read or run, defines no family, or one that is taken or not whole.

    """
    place = path.resolve()
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    known = file_at(place)
    if known is not None and known.digest == digest:
        return known.families
    module = _run(path, content, digest)
    families = [_guarded_family(each, path) for each in _defined(module, Family, FAMILIES)]
    if not families:
        raise FamilyError(
            "it defines no family", where=path, expected="a Family(...) under a name of its own", remedy=PAGE
        )
    operators = [_guarded_operator(each, path) for each in _defined(module, Operator, OPERATORS.values())]
    for each in operators:
        try:
            check_free(place, each.name)
        except FamilyError as error:
            raise error.at(path) from None
    file = FamilyFile(where=path, digest=digest, families=tuple(families), check=check_operators)
    add_families(place, file)
    keep_operators(place, operators)
    return file.families


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FamilyError(
            f"cannot be read: {error.strerror}", where=path, expected="a Python file that defines a Family"
        ) from error


def _run(path: Path, content: bytes, digest: str) -> ModuleType:
    """Return the file as a module; it is not written anywhere, and no other file is found by its name."""
    try:
        code = compile(content, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise FamilyError(f"it is no Python: {said}", where=f"{path}{line}") from error
    module = ModuleType(f"_family_file_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(code, module.__dict__)
    except AprFalsifyError as error:
        raise FamilyError(str(error), where=_line_of(error, path)) from error
    except (Exception, SystemExit) as error:
        raise FamilyError(f"running it raised {_error_line(error)}", where=_line_of(error, path)) from error
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """Return the file with the line where it was when the error was raised."""
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _error_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _defined(module: ModuleType, kind: type[_T], ours: Iterable[_T]) -> list[_T]:
    """Return the objects of ``kind`` in ``module``, without those that it only imported from our tables."""
    imported = {id(each) for each in ours}
    found = {id(value): value for value in vars(module).values() if isinstance(value, kind)}
    return [value for place, value in found.items() if place not in imported]


def _guarded_family(own: Family, path: Path) -> Family:
    """Return the family with functions whose errors name the file, after a check of what it says."""
    where = f"{path}: the family {own.name}"
    if problem := _problem_of(own):
        raise FamilyError(problem, where=where, remedy=PAGE)
    return replace(
        own,
        layer=_guarded_nodes(own.layer, path, f"{where}: its function layer"),
        ends=_guarded_nodes(own.ends, path, f"{where}: its function ends"),
        settings=_guarded_settings(own, path, where),
    )


def _problem_of(own: Family) -> str:
    """Say what cannot be right in what a family says, "" where nothing is wrong."""
    for name in ("model_types", "gguf_architectures"):
        value = getattr(own, name)
        if not isinstance(value, tuple) or not all(isinstance(each, str) and each for each in value):
            return f"{name} is {value!r}, and not a tuple of names such as ('llama',)"
    if not isinstance(own.name, str) or not own.name or not isinstance(own.title, str):
        return f"its name is {own.name!r} and its title {own.title!r}, and not words"
    for names in (own.weights, own.gguf_weights):
        for role, name in names.items():
            if not _is_template(name):
                return f"the weight {role!r} is called {name!r}, and a name may hold {{n}} and {{e}} alone"
    if missing := [role for role in ("embed", "q", "k", "v", "o") if role not in own.weights]:
        return f"weights has no name for {', '.join(missing)}"
    apart = set(own.weights) ^ set(own.gguf_weights)
    if own.gguf_weights and apart:
        return f"weights and gguf_weights differ in the roles {', '.join(sorted(apart))}"
    if own.gguf_architectures and not own.gguf_weights:
        return "it has GGUF architectures, and no gguf_weights"
    return ""


def _is_template(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(name.format(n=0, e=0))
    except (LookupError, ValueError):
        return False


def _guarded(function: Callable[..., _T], path: Path, what: str) -> Callable[..., _T]:
    """Return ``function``, whose errors become those of the file; typed errors go on as they are."""

    @wraps(function, assigned=())
    def guarded(*arguments: Any) -> _T:
        try:
            return function(*arguments)
        except AprFalsifyError:
            raise
        except Exception as error:  # whatever a user's file raises is reported with its line
            raise FamilyError(f"raised {_error_line(error)}", where=_placed(what, error, path)) from error

    return guarded


def _guarded_nodes(function: Callable[..., Any], path: Path, what: str) -> Callable[..., Nodes]:
    """Return a function that gives nodes, guarded; what it gives is checked to be nodes."""

    def checked(*arguments: Any) -> Nodes:
        nodes = tuple(function(*arguments))
        for node in nodes or (None,):
            if not isinstance(node, Node):
                raise TypeError(f"gives {node!r:.60} where a Node is wanted")
            if not isinstance(node.inputs, Mapping) or not isinstance(node.roles, tuple):
                raise TypeError(f"the node {node.stage}: inputs is a mapping, and roles a tuple")
        return nodes

    return _guarded(checked, path, what)


def _placed(what: str, error: BaseException, path: Path) -> str:
    return what.replace(str(path), _line_of(error, path), 1)


_KEYWORDS = tuple(field.name for field in fields(Geometry))


def _guarded_settings(own: Family, path: Path, where: str) -> Callable[[Config], Mapping[str, Any]]:
    """Guard ``settings``: a KeyError or ValueError is about config.json, as :class:`Config` raises them."""

    def settings(config: Config) -> Mapping[str, Any]:
        what = f"{where}: its function settings"
        try:
            found = dict(own.settings(config))
        except (AprFalsifyError, KeyError, ValueError):
            raise
        except Exception as error:  # whatever a user's file raises is reported with its line
            raise FamilyError(f"raised {_error_line(error)}", where=_placed(what, error, path)) from error
        for name in found:
            if name not in _KEYWORDS:
                raise FamilyError(
                    f"gives {name!r}, which is no keyword of Geometry",
                    where=what,
                    expected="of " + ", ".join(_KEYWORDS),
                    remedy=nearest(str(name), _KEYWORDS),
                )
        return found

    return settings


def _guarded_operator(own: Operator, path: Path) -> Operator:
    """Return the operator with functions whose errors name file, operator and node."""
    if not isinstance(own.name, str) or not own.name:
        raise FamilyError(f"an operator is called {own.name!r}, and not by a word", where=path)
    where = f"{path}: the operator {own.name}"

    def values(node: Node, inputs: Inputs, site: Site) -> Array:
        what = f"{where}: its function values at the node {node.stage}"
        made = _guarded(own.values, path, what)(node, inputs, site)
        dims = {**site.geometry.dims(len(site.tokens)), "tokens": -1}  # a replay may take some tokens alone
        _check_shape(made, canonical_shape(node.stage, dims), what)
        return made

    def variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
        what = f"{where}: its function variance at the node {node.stage}"
        made = _guarded(own.variance, path, what)(node, ins, y, site, store)
        _check_shape(made, y.shape, what)
        return made

    def text(node: Node, geometry: Geometry, layer: int | None) -> tuple[str, ...]:
        what = f"{where}: its function text at the node {node.stage}"
        return tuple(_guarded(own.text, path, what)(node, geometry, layer))

    return replace(own, values=values, variance=variance, text=text)


def _check_shape(made: object, wanted: tuple[int, ...], what: str) -> None:
    """Check that a user's function made an array of the shape (-1: of any size).

    An axis of arithmetics may stand in front of it.
    """
    shape = made.shape if isinstance(made, np.ndarray | np.generic) else None
    if shape is None or not _fits(shape, wanted):
        said = f"a {type(made).__name__}" if shape is None else f"an array of the shape {list(shape)}"
        sizes = ", ".join("tokens" if size < 0 else str(size) for size in wanted)
        raise FamilyError(f"returned {said}", where=what, expected=f"an array of the shape [{sizes}]")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    last = shape[len(shape) - len(wanted) :]
    return len(last) == len(wanted) and all(
        size in (-1, found) for found, size in zip(last, wanted, strict=True)
    )
