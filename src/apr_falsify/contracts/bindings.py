"""``binding.yaml``: which function of a crate implements which equation of a contract.

Format: ``version``, ``target_crate`` and ``bindings``, a list of {contract, equation, module_path, function,
signature, status}; status is ``implemented``, ``partial`` or ``not_implemented`` (provable-contracts).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from apr_falsify.contracts.model import BoundEquation, Citation, Sibling, entries, place_of, text_of
from apr_falsify.contracts.names import PathName, parse_symbols
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.resolution import UNCHECKED, Resolution, ResolutionState, unresolved
from apr_falsify.contracts.resolve import exists_anywhere, resolve
from apr_falsify.contracts.roots import SearchScope
from apr_falsify.contracts.source import Mapping, Sequence, Text
from apr_falsify.contracts.statuses import word_of
from apr_falsify.symbols.match import is_reexported, lookup
from apr_falsify.symbols.tree import SourceTree

_CLAIMS = ("IMPLEMENTED", "PARTIAL", "BOUND", "DONE", "COMPLETE")


def is_registry(data: Mapping) -> bool:
    """Whether a document is a registry of bindings rather than a contract."""
    return isinstance(data.get("bindings"), Sequence) and "target_crate" in data


def binding_citations(data: Mapping) -> Iterator[Citation]:
    """The function that each binding names; a binding that claims none is expected to have none."""
    crate = text_of(data, "target_crate")
    for key, item in entries(data.get("bindings"), "bindings"):
        if not isinstance(item, Mapping):
            continue
        function = _function(item)
        if function is None:
            continue
        module = text_of(item, "module_path")
        own = function if item.get("function") else function.rpartition("::")[2]
        for name in parse_symbols(own):
            yield Citation(
                kind="binding",
                text=module if module and "-" not in module.partition("::")[0] else crate,
                name=name,
                place=place_of(function, f"{key}.function"),
                expected_absent=word_of(text_of(item, "status")) not in _CLAIMS,
                role=text_of(item, "status"),
            )


def _function(item: Mapping) -> Text | None:
    """The function of a binding, else the path that ends in it."""
    function, path = item.get("function"), item.get("module_path")
    if isinstance(function, Text) and function.strip():
        return function
    return path if isinstance(path, Text) and "::" in path else None


def bound_contracts(data: Mapping) -> Iterator[Sibling]:
    """The contracts whose equations are bound, each where it is named first."""
    named: dict[str, Place] = {}
    for key, item in entries(data.get("bindings"), "bindings"):
        contract = item.get("contract") if isinstance(item, Mapping) else None
        if isinstance(contract, Text) and re.fullmatch(r"[\w-]+\.ya?ml", contract):
            named.setdefault(str(contract), place_of(contract, f"{key}.contract"))
    for name, place in named.items():
        yield Sibling(name=name.rpartition(".")[0], place=place)


def bound_equations(data: Mapping) -> Iterator[BoundEquation]:
    """The equations that are bound, with the contract that each is said to be of."""
    for key, item in entries(data.get("bindings"), "bindings"):
        equation = item.get("equation") if isinstance(item, Mapping) else None
        if isinstance(equation, Text) and isinstance(item, Mapping) and text_of(item, "contract"):
            contract = re.sub(r"\.ya?ml$", "", text_of(item, "contract"))
            place = place_of(equation, f"{key}.equation")
            yield BoundEquation(contract=contract, equation=str(equation), place=place)


def binding_problems(path: str, data: Mapping) -> Iterator[Problem]:
    """Bindings that are implemented by no function that could be looked up: told once, with their number."""
    items = [item for _, item in entries(data.get("bindings"), "bindings") if isinstance(item, Mapping)]
    claiming = [item for item in items if word_of(text_of(item, "status")) in _CLAIMS]
    nameless = [one for one in claiming if _function(one) is None]
    if nameless:
        place = place_of(nameless[0], "bindings")
        message = f"{len(nameless)} of {len(claiming)} bindings say implemented and name no function"
        hint = "what they claim is not checked; name the function"
        yield problem_at(path, "binding-without-function", place, message, subject="bindings", hint=hint)


def resolve_binding(citation: Citation, scope: SearchScope) -> Resolution:
    """Look a bound function up in the trees that hold its crate."""
    crate = citation.text.partition("::")[0]
    trees = [tree for tree in scope.trees if holds_crate(tree, crate)]
    if not trees:
        return unresolved(
            f"the crate {crate!r} of the bindings is in no tree that was given", f"--source {crate}=DIR"
        )
    found = [resolve(_in_tree(citation, tree), scope) for tree in trees]
    best = next((one for one in found if one.state is ResolutionState.RESOLVED), found[0])
    if best.state is ResolutionState.RESOLVED and citation.expected_absent:
        message = f"the binding says {citation.role}, and {citation.name} is there"
        hint = "say implemented, or what of it is missing"
        return Resolution(state=best.state, code="under-claimed", message=message, hint=hint)
    if best.state is ResolutionState.RESOLVED and not best.code:
        return _under_its_module(citation, trees, best, scope)
    if best.state is not ResolutionState.MISSING:
        return best
    if citation.expected_absent:
        return UNCHECKED
    message = f"the binding says implemented, and {citation.name!r} exists nowhere in {crate}"
    return replace(best, message=message)


def _under_its_module(
    citation: Citation, trees: list[SourceTree], found: Resolution, scope: SearchScope
) -> Resolution:
    """Say where a function is that is neither in the module that the binding gives nor passed on by it."""
    *outer, last = citation.name.split("::")
    modules = citation.text.split("::")
    if modules[-1] in (last, *outer[-1:]):  # the path of the function itself, or of its type
        modules.pop()
    name = "::".join((*modules[1:], citation.name))
    if len(modules) < 2 or exists_anywhere(name, trees, scope, sure=True) is not ResolutionState.MISSING:
        return found
    if any(_offers(tree, modules[-1], citation.name) for tree in trees):
        return found
    where = [f"{file}:{one.line}" for tree in trees for file, one in tree.find(last)]
    message = f"{citation.name!r} is not under {'::'.join(modules)}, where the binding says it is"
    hint = f"it is defined in {', '.join(where[:3])}"
    return replace(found, code="binding-elsewhere", message=message, hint=hint)


def _offers(tree: SourceTree, module: str, name: str) -> bool:
    """Whether a module that may be meant includes a name, passes it on, or makes it by a macro."""
    places = (f"/{module}.rs", f"/{module}/mod.rs", f"/{module}.py", f"/{module}/__init__.py")
    names = (f"{module}.rs", "mod.rs", f"{module}.py", "__init__.py")
    files = [file for name in names for file in tree.find_file(name) if file.endswith(places)]
    first = name.partition("::")[0]
    return any(lookup(tree, file, name) or is_reexported(tree, file, first) for file in files)


def _in_tree(citation: Citation, tree: SourceTree) -> Citation:
    paths = (PathName(path="", source=tree.name),) if tree.name else ()
    return replace(citation, kind="symbol", paths=paths)


def holds_crate(tree: SourceTree, crate: str) -> bool:
    """Whether a tree is a crate or package, is given under its name, or holds it in its workspace."""
    wanted = crate.replace("-", "_")
    if tree.name.replace("-", "_") == wanted or tree.root.name.replace("-", "_") == wanted:
        return True
    if tree.locate(f"{wanted}/__init__.py") or tree.locate(f"src/{wanted}/__init__.py"):
        return True
    folders = {file.rpartition("/src/")[0]: file for file in tree.files() if "src/" in file}
    return any(tree.package_of(file).replace("-", "_") == wanted for file in folders.values())
