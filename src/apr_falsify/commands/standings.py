"""In what state the evidence is that contracts name: each bundle verified, and compared with today's code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.contracts.standing import ABSENT, BROKEN, Evidence, Standing

if TYPE_CHECKING:
    from apr_falsify.contracts.claim import Claim
    from apr_falsify.contracts.settings import Settings
    from apr_falsify.evidence.earn import Earned
    from apr_falsify.evidence.verify import Verification
    from apr_falsify.symbols.digest import Project as Code

_MARKS = (b"bundle", b"evidence")
"""What stands in every contract that names a bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractProject:
    """The project that a contract is of.

    Attributes:
        root: its folder, which the paths of bundles are relative to.
        name: its name.
        evidence: where it keeps bundles, relative to the root; ``None`` where that is not configured.

    """

    root: Path
    name: str
    evidence: str | None

    @property
    def not_sources(self) -> tuple[str, ...]:
        """Return what changes without changing what is measured: the bundles."""
        return () if self.evidence is None else (f"{self.evidence}/",)


def project_at(contract: Path) -> ContractProject:
    """Return the project of a contract: the configured one around it, else the nearest there is.

    Raises:
        UsageError: its configuration cannot be read.

    """
    from apr_falsify.contracts.roots import project_of
    from apr_falsify.contracts.settings import read_settings

    folder = contract.absolute().parent
    settings = read_settings(folder)
    return _project(settings.root or project_of(folder), settings)


def _project(root: Path, settings: Settings) -> ContractProject:
    from apr_falsify.contracts.settings import project_name

    held = settings.evidence_dir.resolve() if settings.evidence_dir else None
    inside = held is not None and held.is_relative_to(root.resolve())
    return ContractProject(
        root=root,
        name=project_name(root),
        evidence=held.relative_to(root.resolve()).as_posix() if held is not None and inside else None,
    )


def judge_bundle(
    claim: Claim, bundle: Path, project: ContractProject, *, pin: str | None
) -> tuple[Verification, Earned]:
    """Verify a bundle, and say what it earns for ``claim``.

    Raises:
        EvidenceError: it is no bundle at all.

    """
    from apr_falsify.evidence.binding import binding_of
    from apr_falsify.evidence.earn import earned
    from apr_falsify.evidence.verify import verify

    verification = verify(bundle, pin=pin, keys=claim.keys)
    answer = earned(
        verification,
        claim,
        bound_now=binding_of(claim, project.root),
        project=project.name,
        not_sources=project.not_sources,
    )
    return verification, answer


def standing(claim: Claim, project: ContractProject, code: Code | None = None) -> Standing:
    """Return the state of the evidence that a contract names for one falsifier.

    ``code`` is what was read of the project before, to spare reading it again for every claim.
    """
    from apr_falsify.errors import EvidenceError
    from apr_falsify.evidence.binding import binding_of
    from apr_falsify.evidence.earn import standing_of, state_of
    from apr_falsify.evidence.verify import verify

    if claim.pin is None:
        return Standing(state=ABSENT)
    bundle = project.root / claim.pin.bundle
    if not bundle.resolve().is_relative_to(project.root.resolve()):
        return standing_of(claim, BROKEN, ("it lies outside the project",))
    try:
        verification = verify(bundle, pin=claim.pin.statement_sha256 or None, keys=claim.keys)
    except EvidenceError as error:
        return standing_of(claim, BROKEN, (error.what,))
    return state_of(
        verification,
        claim,
        bound_now=binding_of(claim, project.root, code),
        project=project.name,
        not_sources=project.not_sources,
    )


def survey(paths: Sequence[Path], settings: Settings, *, cached: bool = True) -> Evidence | None:
    """Return the state of all evidence that the project's contracts below ``paths`` name.

    ``None`` where the project configures no folder for evidence.

    Raises:
        UsageError: there is nothing to validate.

    """
    if settings.root is None or settings.evidence_dir is None:
        return None
    from apr_falsify.commands.standings_cache import identity_of, store, stored

    project, folder = _project(settings.root, settings), settings.evidence_dir
    naming = list(_naming(paths, Evidence(root=project.root, standings={})))
    is_whole = _are_all(paths, settings)
    if not naming:
        lying = _not_named(folder, project, ()) if is_whole else ()
        return Evidence(root=project.root, standings={}, not_named=lying)
    identity = identity_of(project.root, folder, naming) if cached else None
    found = stored(identity) if identity else None
    if found is None:
        found = _looked_at(naming, project)
        if identity and all(_is_below(one.bundle, project) for one in found.values()):
            store(identity, found)
    bundles = tuple(one.bundle for one in found.values())
    lying = _not_named(folder, project, bundles) if is_whole else ()
    return Evidence(root=project.root, standings=found, not_named=lying)


def _are_all(paths: Sequence[Path], settings: Settings) -> bool:
    """Whether ``paths`` hold all contracts of the project; of a part another may name a bundle."""
    asked = [path.resolve() for path in paths]
    root = settings.root or Path()
    ours = [path.resolve() for path in settings.contracts or (root / "contracts",)]
    return all(any(one.is_relative_to(path) for path in asked) for one in ours)


def _naming(paths: Sequence[Path], evidence: Evidence) -> Iterator[Path]:
    """Contracts of the project that may name a bundle; the bytes tell enough to pass over the others."""
    from apr_falsify.contracts.discover import discover
    from apr_falsify.contracts.files import read_bytes

    for path in discover(paths):
        data = read_bytes(path)
        if isinstance(data, bytes) and all(mark in data for mark in _MARKS) and evidence.covers(str(path)):
            yield path


def _looked_at(naming: Sequence[Path], project: ContractProject) -> dict[str, Standing]:
    from apr_falsify.contracts.claim import read_claims
    from apr_falsify.errors import ContractError
    from apr_falsify.symbols.digest import Project as Code

    code, found = Code(project.root), {}
    for path in naming:
        try:
            claims = read_claims(path)
        except ContractError:
            continue  # a contract that cannot be read is reported by the rules on reading
        found.update({one.falsifier: standing(one, project, code) for one in claims if one.pin is not None})
    return found


def _is_below(bundle: str, project: ContractProject) -> bool:
    """Whether the folder for evidence holds a bundle, so that its content is part of the cache's key."""
    return project.evidence is not None and f"{Path(bundle).as_posix()}/".startswith(f"{project.evidence}/")


def _not_named(folder: Path, project: ContractProject, bundles: Sequence[str]) -> tuple[str, ...]:
    """Bundles of the folder that are none of ``bundles``; a folder or zip that is no bundle is left out."""
    from apr_falsify.contracts.files import shown_path

    if not folder.is_dir():
        return ()
    named = {(project.root / one).resolve() for one in bundles}
    lying = [one for one in sorted(folder.iterdir()) if _is_bundle(one)]
    return tuple(shown_path(one) for one in lying if one.resolve() not in named)


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".zip" or (path / "statement.json").is_file()
