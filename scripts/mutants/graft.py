"""Put a mutant into modules that are already imported.

Tests and code hold functions by reference (``from x import f``). So the changed statement is run beside the
module, and what it defines is put into the objects that are there: a function gets the new code and
defaults, a class the same for each member, any other value takes the place of the old one in every module
of ours that has it under the same name. Constants and tables of the module that are made by means of what
changed are made anew.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from mutants.places import Mutant, calls_of, values_of

_FLAGS = __future__.annotations.compiler_flag
OURS = ("apr_falsify", "tests")


class NotPossible(Exception):
    """The changed code cannot be compiled or run: no mutant."""


def graft(mutant: Mutant) -> None:
    """Change the code of this process as ``mutant`` says.

    Raises:
        NotPossible: the changed statement is no valid code.

    """
    mutant.slot.put(mutant.new)
    module = module_of(mutant.file)
    try:
        _run(mutant.statement, module)
        values = values_of(mutant.statement)
        functions = mutant.defines - values
        for statement in mutant.rest:
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            if values_of(statement) and (used & values or calls_of(statement) & functions):
                _run(statement, module)
                values = values | values_of(statement)
    except Exception as error:
        raise NotPossible(f"{type(error).__name__}: {error}") from error


def module_of(file: str) -> types.ModuleType:
    """Return the module of a file, relative to the repository; imported where no test did so yet."""
    name = file.removeprefix("src/").removesuffix(".py").replace("/", ".")
    return importlib.import_module(name.removesuffix(".__init__"))


def _run(statement: ast.stmt, module: types.ModuleType) -> None:
    """Run a statement beside its module, and put what it defines into the objects that are there."""
    before = vars(module)
    scratch = dict(before)
    tree = ast.fix_missing_locations(ast.Module(body=[statement], type_ignores=[]))
    exec(compile(tree, str(module.__file__), "exec", flags=_FLAGS, dont_inherit=True), scratch)
    for key, value in scratch.items():
        if key in before and value is not before[key]:
            _replace(key, before[key], value)


def clear_caches() -> None:
    """Forget what functions of ours remember from before the change."""
    for module in _our_modules():
        for value in list(vars(module).values()):
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()


def _our_modules() -> Iterator[types.ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in OURS and module is not None:
            yield module


def _replace(key: str, old: Any, new: Any) -> None:
    if isinstance(old, type) and isinstance(new, type):
        _replace_members(old, new)
    elif not _replace_code(old, new):
        for module in _our_modules():
            if vars(module).get(key) is old:
                setattr(module, key, new)


def _function(value: Any) -> Any:
    """Return the function within a property, a static method, a cache ..., or the value itself.

    That of a partial is not what the partial is: its arguments are.
    """
    if isinstance(value, functools.partial):
        return value
    for inner in ("__wrapped__", "fget", "func", "__func__"):
        if not isinstance(value, types.FunctionType) and hasattr(value, inner):
            return _function(getattr(value, inner))
    wrapped = getattr(value, "__wrapped__", None)
    return value if wrapped is None else _function(wrapped)


def _replace_code(old: Any, new: Any) -> bool:
    old, new = _function(old), _function(new)
    if not (isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType)):
        return False
    old.__code__ = new.__code__
    old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    return True


def _replace_members(old: type, new: type) -> None:
    for key, value in vars(new).items():
        was = vars(old).get(key)
        if key not in vars(old) or _replace_code(was, value):
            continue
        # The slots of a dataclass and the members of an enumeration are what they were.
        if not key.startswith("_") and not isinstance(was, types.MemberDescriptorType | old):
            setattr(old, key, value)
