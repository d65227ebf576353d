"""What a claim is bound to: the code that its evidence names and its tests, and all that those use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.contracts.cited import all_cited
from apr_falsify.contracts.claim import Claim, canonical_json
from apr_falsify.contracts.model import Citation, Contract, read_contract
from apr_falsify.contracts.names import PathName
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.source import Mapping as YamlMapping
from apr_falsify.contracts.source import parse
from apr_falsify.errors import ContractError
from apr_falsify.evidence.facts import Bound
from apr_falsify.symbols.digest import Project, bind
from apr_falsify.symbols.index import Definition
from apr_falsify.symbols.markers import is_marker, marked_tests, selected_markers

Names = list[tuple[str, str]]
_NO_CODE = ("prose", "loose", "marker")
"""Kinds of citation that name no code surely enough to bind it; markers are looked up apart."""


def binding_of(claim: Claim, root: Path, project: Project | None = None) -> Bound:
    """Return the digests of the code that a claim rests on.

    Args:
        claim: the claim of one falsifier.
        root: the project that its paths are relative to.
        project: what was read of ``root`` before, to spare reading it again for every claim.

    Raises:
        ContractError: the fields of the claim are no falsifier.

    """
    project = project or Project(root)
    names: Names = []
    unbound: dict[str, str] = {}
    cited = [one for one in all_cited(_contract(claim)) if one.kind not in _NO_CODE]
    for one in cited:
        if reader := _READERS.get(one.kind):
            reader(_Place(project=project, names=names, unbound=unbound), one)
        elif one.run is None or not one.run.marker:  # a marker is looked up below
            unbound[one.text] = _UNREAD[one.kind]
    for marker in _markers(claim):
        _marked(_Place(project=project, names=names, unbound=unbound), marker)
    names += _whole_files(cited, names, unbound)
    functions, told = bind(root, dict.fromkeys(names), project)
    return Bound(functions=functions, unbound={**dict(sorted(unbound.items())), **told})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where names are looked up, and what has been found."""

    project: Project
    names: Names
    unbound: dict[str, str]

    def exists(self, path: str) -> bool:
        """Whether the project has a file, or a folder, of that name."""
        return self.project.modules.tree.locate(path) is not None


def _contract(claim: Claim) -> Contract:
    """Return a contract of this claim alone; JSON is YAML."""
    parsed = parse("claim", canonical_json({"falsification_tests": [claim.fields]}))
    if isinstance(parsed, Problem) or not isinstance(parsed.data, YamlMapping):
        raise ContractError("its claim cannot be read", where=claim.path)
    return read_contract("claim", parsed.data)


def _markers(claim: Claim) -> Iterator[str]:
    test = claim.fields.get("test")
    yield from selected_markers(test if isinstance(test, str) else "")


def _refused(place: _Place, path: PathName, name: str) -> bool:
    """Tell what is not of this project; whether it is not."""
    shown = "::".join(part for part in (path.path, name) if part)
    if path.source:
        place.unbound[f"{path.source}:{shown}"] = f"is of another repository: {path.source}"
    elif path.is_placeholder or path.escapes:
        place.unbound[shown] = "is no file of this project"
    elif not path.path.endswith((".py", ".pyi")):
        place.unbound[shown] = "is no Python; only that is bound"
    elif not place.exists(path.path):
        place.unbound[shown] = "its file is not in the project"
    else:
        return False
    return True


def _file(place: _Place, one: Citation) -> None:
    for path in one.paths:
        _refused(place, path, "")


def _symbol(place: _Place, one: Citation) -> None:
    """Bind a name in the first of its files that defines it."""
    for path in one.paths:
        if _is_ours(place, path) and place.project.defines(path.path, one.name):
            place.names.append((path.path, one.name))
            return
    path = next((one for one in one.paths if one.path), one.paths[0] if one.paths else PathName(path=""))
    if not (path.path or path.source):
        place.unbound[one.name] = "is cited without its file"
    elif not _refused(place, path, one.name):
        place.unbound[f"{path.path}::{one.name.replace('::', '.')}"] = "no cited file defines it"


def _is_ours(place: _Place, path: PathName) -> bool:
    return not path.source and path.path.endswith((".py", ".pyi")) and place.exists(path.path)


def _node(place: _Place, one: Citation) -> None:
    for path in one.paths:
        if not _refused(place, path, one.name):
            place.names.append((path.path, one.name.partition("[")[0]))


def _unittest(place: _Place, one: Citation) -> None:
    words = one.name.split(".")
    for count in range(len(words), 0, -1):
        path = "/".join(words[:count]) + ".py"
        if place.exists(path):
            place.names.append((path, ".".join(words[count:])))
            return
    place.unbound[one.name] = "its file is not in the project"


def _bare(place: _Place, one: Citation) -> None:
    """Bind a test that is named without its file, wherever it stands."""
    found: list[tuple[str, Definition]] = place.project.modules.tree.find(one.name.split("::")[-1])
    own = [(file, definition) for file, definition in found if file.endswith(".py")]
    place.names.extend((file, definition.qualified) for file, definition in own)
    if not own:
        place.unbound[one.name] = "is no Python of this project"


def _cargo(place: _Place, one: Citation) -> None:
    place.unbound[one.text] = "is a test of Rust; only Python is bound"


_READERS = {
    "file": _file,
    "symbol": _symbol,
    "pytest": _node,
    "unittest": _unittest,
    "cargo": _cargo,
    "test": _bare,
}
"""Kind of citation -> what looks it up."""

_UNREAD = {
    "run": "chooses tests by their names; only tests that are named are bound",
    "target": "is a target of another tool; only tests that are named are bound",
    "theorem": "is no Python; only that is bound",
    "binding": "is an entry of a binding file; only Python is bound",
}
"""Kind of citation that names no function of Python -> what is said of it."""


def _marked(place: _Place, marker: str) -> None:
    shown = f"pytest -m {marker}"
    if not is_marker(marker):
        place.unbound[shown] = "is an expression over several markers"
        return
    tests = [one for one in marked_tests(place.project.modules.tree, marker) if not one.why_not]
    place.names.extend((one.path, ".".join(one.parts)) for one in tests)
    if not tests:
        place.unbound[shown] = "no test carries the marker"


def _whole_files(cited: list[Citation], names: Names, unbound: Mapping[str, str]) -> Names:
    """Return the cited files of which nothing is named: they count with all that they define."""
    named = {path for path, _ in names}
    files = [path.path for one in cited if one.kind == "file" for path in one.paths if not path.source]
    return [(path, "") for path in files if path not in named and path not in unbound]
