"""Resolving ``cargo test`` and ``cargo nextest run``: which tests the command would run, decided by reading.

A filter is judged as the runner judges it, a part of the test's whole path. What is said to be missing is
surely so: where a macro, a build script or a machine decides, the name is not checkable, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from apr_falsify.contracts.cargo_command import CargoTest, is_left_open, is_placeholder
from apr_falsify.contracts.cargo_doc import why_not_documented
from apr_falsify.contracts.cargo_maybe import may_be_case, may_be_documented, may_make
from apr_falsify.contracts.cargo_targets import is_selected, targets_shown
from apr_falsify.contracts.filterset import (
    Expression,
    Named,
    alternatives,
    any_of,
    both,
    chooses,
    parse_filterset,
    tests_named,
)
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    ResolutionState,
    did_you_mean,
    missing,
    not_checkable,
    unresolved,
)
from apr_falsify.contracts.roots import SearchScope
from apr_falsify.symbols.cargo import CargoTarget, Package
from apr_falsify.symbols.rust_build import Build, asked_of
from apr_falsify.symbols.rust_cfg import holds
from apr_falsify.symbols.rust_crate import RustTest
from apr_falsify.symbols.rust_project import RustProject, rust_project
from apr_falsify.symbols.tree import SourceTree


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """One package that a command tests."""

    project: RustProject
    package: Package
    build: Build


@dataclass(slots=True)
class _Seen:
    """What a search met, beside a test that runs."""

    ignored: list[RustTest] = field(default_factory=list)
    running: list[RustTest] = field(default_factory=list)
    off: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[tuple[CargoTarget, RustTest]] = field(default_factory=list)
    may: list[str] = field(default_factory=list)
    runners: list[str] = field(default_factory=list)
    maybe: bool = False
    is_named: bool = False


def resolve_cargo(command: CargoTest, scope: SearchScope) -> Resolution:
    """The package is there, the targets it names are there, and each filter meets a test that runs."""
    plain = (*command.packages, *command.filters, command.folder)
    if any(map(is_placeholder, plain)) or any(map(is_left_open, command.filtersets)):
        return UNCHECKED
    chosen = list(_packages(command, scope))
    if not chosen:
        return _no_package(command, scope)
    for kind, name in command.targets:
        resolution = _target_there(kind, name, command, chosen) if name else RESOLVED
        if resolution is not RESOLVED:
            return resolution
    if command.only_targets:
        return RESOLVED
    if command.is_doc:
        libraries = [(one.project, one.package) for one in chosen]
        found = [why_not_documented(one, libraries, command) for one in command.filters]
        return next((one for one in found if one is not RESOLVED), RESOLVED)
    expressions = [parse_filterset(text) for text in command.filtersets]
    if None in expressions:
        return not_checkable(f"{command.filtersets[expressions.index(None)]!r} is no expression of nextest")
    asked = _asked_for(command, [one for one in expressions if one])
    if not asked and any(kind == "test" and name for kind, name in command.targets):
        asked.append("")  # any test of the binaries that are named
    results = [_filter(one, command, chosen) for one in asked]
    return next((one for one in results if one is not RESOLVED), _stopped(chosen) if asked else RESOLVED)


def _asked_for(command: CargoTest, expressions: list[Expression]) -> list[str | Expression]:
    """Return what is to choose a test, each for itself: filters, and expressions that name other tests."""
    if not expressions:
        return [*command.filters]
    if command.filters:  # a test must meet both
        return [both(any_of(expressions), one) for one in command.filters]
    return [one for each in expressions for one in alternatives(each)]


def _stopped(chosen: list[_Chosen]) -> Resolution:
    """What is there and would run, unless cargo itself stops before."""
    unread = [each for one in chosen for each in one.project.unread(one.package)]
    if not unread:
        return RESOLVED
    return Resolution(
        state=ResolutionState.RESOLVED,
        code="crate-not-readable",
        message=f"cargo stops at {unread[0].where}: {unread[0].why}",
        hint="fix it: until then the command runs no test",
    )


def prepare(command: CargoTest, scope: SearchScope) -> None:
    """Read what a command will ask for, on all cores."""
    for one in _packages(command, scope):
        one.project.prepare(one.package)


def _without_links(tree: SourceTree, folder: str) -> str:
    """A folder under the name that its packages are listed by; the root of the tree has none."""
    there = tree.locate(folder) if folder else None
    return folder if there is None else "" if there == tree.root else tree.relative(there)


def _packages(command: CargoTest, scope: SearchScope) -> Iterator[_Chosen]:
    for tree in scope.trees:
        project = rust_project(tree)
        workspace = project.workspace
        if command.packages:
            found = [one for name in command.packages for one in workspace.named(name)]
        elif command.folder and not tree.locate(command.folder):
            found = []
        else:
            folder = _without_links(tree, command.folder)
            found = workspace.whole(folder) if command.whole else workspace.chosen(folder)
        left_out = {one.name for name in command.excluded for one in workspace.named(name)}
        tested = {one.folder: one for one in found if one.name not in left_out}
        names = frozenset(one.name for one in tested.values())
        for one in tested.values():
            yield _Chosen(project=project, package=one, build=_build(project, one, command, names))


def _build(project: RustProject, package: Package, command: CargoTest, tested: frozenset[str]) -> Build:
    return Build(
        package=package,
        features=package.enabled(command.features, default=command.default_features),
        all_features=command.all_features,
        flags=frozenset(command.flags),
        asked=asked_of(project.workspace, package, tested),
        settable=project.settable,
    )


def _no_package(command: CargoTest, scope: SearchScope) -> Resolution:
    known = {one.name: tree for tree in scope.trees for one in rust_project(tree).workspace.packages}
    local = [one for tree in scope.local for one in rust_project(tree).workspace.packages]
    unread = [one for tree in scope.local for one in rust_project(tree).workspace.unread]
    if unread:
        return not_checkable(f"{unread[0].where}: {unread[0].why}")
    if command.packages and local and scope.owns():
        near = next(iter(known.values())).nearest(command.packages[0], sorted(known))[:2]
        return missing(
            "test-not-found", f"no crate {command.packages[0]!r} in this workspace", did_you_mean(near)
        )
    crate = f"crate {command.package!r}" if command.package else "the crate that it tests"
    return unresolved(f"{crate} is in no tree that was given")


def _target_there(kind: str, name: str, command: CargoTest, chosen: list[_Chosen]) -> Resolution:
    import fnmatch

    own = [target for one in chosen for target in one.package.targets if target.kind == kind]
    if any(fnmatch.fnmatchcase(target.name, name) for target in own):
        return RESOLVED
    file = next(
        (
            path
            for one in chosen
            if (path := one.package.path(f"tests/{name}.rs")) and one.project.tree.locate(path)
        ),
        "",
    )
    if kind == "test" and file:
        reason = next(
            (one.package.why_no_others for one in chosen if one.package.why_no_others), "it is no target"
        )
        message = f"{file} is no test of {command.package or 'the crate'}: {reason}"
        return missing("test-not-collected", message, f'add [[test]] name = "{name}" to its Cargo.toml')
    near = chosen[0].project.tree.nearest(name, [target.name for target in own])
    what = "test binary" if kind == "test" else kind
    return missing(
        "test-not-found", f"no {what} {name!r} in {command.package or 'the crate'}", did_you_mean(near)
    )


def _filter(wanted: str | Expression, command: CargoTest, chosen: list[_Chosen]) -> Resolution:
    seen = _Seen()
    for one in chosen:
        for target in one.package.targets:
            _look(wanted, command, one, target, seen)
            if any(not test.hollow for test in seen.running[-1:]):
                return RESOLVED
    if seen.running or seen.maybe:
        return _asserting(wanted, seen)
    if seen.may:
        return not_checkable(seen.may[0])
    if seen.ignored:
        return _ignored(wanted, seen.ignored[0])
    if seen.runners and not seen.is_named and _no_orphan(wanted, chosen):
        return not_checkable(seen.runners[0])
    return _not_run(wanted, command, chosen, seen)


def _no_orphan(wanted: str | Expression, chosen: list[_Chosen]) -> bool:
    """Whether what is asked for stands in no file that is never compiled."""
    last = _last_name(wanted)
    return not any(last in one.project.orphans(one.package) for one in chosen)


def _look(
    wanted: str | Expression, command: CargoTest, one: _Chosen, target: CargoTarget, seen: _Seen
) -> None:
    tests = one.project.tests(one.package, target)
    selected = is_selected(target, command)
    if selected and not target.has_harness:
        seen.runners.append(f"the {target.kind} {target.name} has a runner of its own (harness = false)")
        return
    why = _why_target_off(target, one, command) if selected else ""
    for test in _matching(wanted, command, one.package, target, tests.holding(_part(wanted))):
        seen.is_named |= not test.unsure and test.name == _last_name(wanted)
        if not selected:
            if not test.unsure:
                seen.elsewhere.append((target, test))
        elif why:
            seen.off.append((f"{test.file}:{test.line}", why))
        else:
            _judge(test, command, one.build, seen)
            if seen.running and not seen.running[-1].hollow:
                return  # one is enough
    if selected and not why:
        seen.maybe |= may_be_case(wanted, command, one.build, tests)
        seen.maybe |= may_be_documented(wanted, command, tests.crate.documented, target)
        for maker in tests.crate.makers:
            if maker.words is None and may_make(maker, wanted, command) and not one.build.why_off(maker.cfgs):
                seen.may.append(maker.why)


def _part(wanted: str | Expression) -> str:
    return wanted if isinstance(wanted, str) else ""


def _matching(
    wanted: str | Expression,
    command: CargoTest,
    package: Package,
    target: CargoTarget,
    tests: Iterator[RustTest],
) -> Iterator[RustTest]:
    for test in tests:
        if any(part in test.path for part in command.skips):
            continue
        if isinstance(wanted, str):
            if not command.is_exact or test.path == wanted:
                yield test
            continue
        named = Named(package=package.name, kind=target.kind, binary=_binary(package, target), test=test.path)
        if chooses(wanted, named) is not False:
            yield test


def _binary(package: Package, target: CargoTarget) -> str:
    return package.name if target.kind == "lib" else target.name


def _judge(test: RustTest, command: CargoTest, build: Build, seen: _Seen) -> None:
    off = build.why_off(test.cfgs)
    if off:
        seen.off.append((f"{test.file}:{test.line}", off))
        return
    ignored = build.is_ignored(test)
    if ignored is True and command.ignored == "no":
        seen.ignored.append(test)
    elif ignored is False and command.ignored == "only" and not test.unsure:
        seen.off.append((f"{test.file}:{test.line}", "the command runs only ignored tests, and it is none"))
    elif test.unsure or any(holds(one, build.decide) is None for one in test.cfgs):
        seen.maybe = True
    else:
        seen.running.append(test)


def _why_target_off(target: CargoTarget, one: _Chosen, command: CargoTest) -> str:
    """Why a target that is asked for runs no test of the language; empty where it does."""
    if one.package.features is not None:
        for feature in target.needs:
            if one.build.decide("feature", feature) is False:
                return f"its target needs the feature {feature!r}, which the command does not enable"
    return ""


def _asserting(wanted: str | Expression, seen: _Seen) -> Resolution:
    """What runs falsifies something, unless every test asserts only what is true whatever the code does."""
    first = next((test for test in seen.running if test.hollow == "true"), None)
    if seen.maybe or first is None or not all(test.hollow for test in seen.running):
        return RESOLVED
    return Resolution(
        state=ResolutionState.RESOLVED,
        code="test-asserts-nothing",
        message=f"{_shown(wanted)} runs tests that hold whatever the code does: {first.file}:{first.line}",
        hint="assert what the rule says",
    )


def _ignored(wanted: str | Expression, test: RustTest) -> Resolution:
    said = "" if "true" in test.ignores else f" by cfg_attr({test.ignores[0]}, ignore)"
    hint = "run it with -- --ignored, or do not count it as evidence"
    return missing(
        "test-ignored",
        f"every test that {_shown(wanted)} matches is #[ignore]d{said} ({test.file}:{test.line})",
        hint,
    )


def _shown(wanted: str | Expression) -> str:
    if isinstance(wanted, str):
        return repr(wanted) if wanted else "the command"
    return "the filterset"


def _not_run(wanted: str | Expression, command: CargoTest, chosen: list[_Chosen], seen: _Seen) -> Resolution:
    """Say why what is there does not run; or that there is nothing, and what is nearest."""
    name = _shown(wanted)
    if seen.off:
        where, why = seen.off[0]
        return missing(
            "test-not-collected", f"no test that {name} matches runs: {why}", f"it stands in {where}"
        )
    if not any(one.package.targets for one in chosen):
        return not_checkable(f"no source of {command.package or 'the crate'} lies in the tree")
    last = _last_name(wanted)
    for one in chosen:
        orphan = one.project.orphans(one.package).get(last)
        if orphan:
            return _orphan(name, orphan.file, orphan.line, one)
    crate = command.package or "the crate"
    if seen.elsewhere:
        target, test = seen.elsewhere[0]
        how = "--lib" if target.kind == "lib" else f"--{target.kind} {target.name}"
        message = f"no test of {targets_shown(command)} matches {name}"
        return missing("test-not-found", message, f"there is one in {test.file}:{test.line} ({how})")
    stopped = _stopped(chosen)
    if stopped.code:
        return not_checkable(stopped.message)
    message = f"no #[test] matches {name} in {crate}"
    return missing("test-not-found", message, _hint(wanted, last, command, chosen))


def _orphan(name: str, file: str, line: int, one: _Chosen) -> Resolution:
    why = one.project.why_not_compiled(file)
    if not why:
        return not_checkable(f"{file} is in no module that was found, and no manifest says what is built")
    hint = "name it in a [[test]] of Cargo.toml" if "/tests/" in f"/{file}" else "declare it with `mod`"
    return missing("test-not-collected", f"the test that {name} means is in {file}:{line}, and {why}", hint)


def _last_name(wanted: str | Expression) -> str:
    if isinstance(wanted, str):
        return wanted.rpartition("::")[2]
    named = tests_named(wanted)
    return named[0].strip("=~#/^$ ").rpartition("::")[2] if named else ""


def _hint(wanted: str | Expression, last: str, command: CargoTest, chosen: list[_Chosen]) -> str:
    """The same name at another path, a pattern that cargo does not know, or the nearest names."""
    if isinstance(wanted, str) and (wanted.startswith("test(") or any(sign in wanted for sign in "*?|^$(")):
        return "cargo takes a part of the test's path, no pattern; expressions are for `cargo nextest run -E`"
    for one in chosen:
        for target in one.package.targets:
            same = one.project.tests(one.package, target).by_name.get(last)
            if same:
                return f"there is {same[0].path!r} in {same[0].file}:{same[0].line}"
    for one in chosen:
        names = one.project.names(one.package)
        if names and last:
            return did_you_mean(one.project.tree.nearest(last, names)[:3])
    return ""
