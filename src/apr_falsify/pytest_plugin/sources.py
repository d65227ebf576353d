"""What of the project ran: commit, uncommitted files, and whether it is the code that evidence binds.

What is bound is read when the tests have ended. It is what ran only where nobody wrote it meanwhile, and
where Python did not import another copy of it: an installed one, or one from another checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.facts import Sources
from apr_falsify.evidence.files import is_name

if TYPE_CHECKING:
    from apr_falsify.symbols.digest import Project


@cache
def sources_of(
    root: Path, project: str, outputs: tuple[Path, ...], code: frozenset[Path] = frozenset()
) -> Sources:
    """Return the state of the sources of a project.

    Args:
        root: the project's folder, resolved.
        project: its name.
        outputs: folders that bundles are written to, resolved; bundles and bytecode are no sources.
        code: files of the project that ran; what git ignores of them is in no commit either.

    Raises:
        EvidenceError: git knows a commit, and cannot say what differs from it.

    """
    commit = _git_output(root, "rev-parse", "HEAD")
    if commit is None:
        return Sources(project=project)
    top = Path(os.fsdecode(_git_output(root, "rev-parse", "--show-toplevel") or b"").strip() or root)
    status = _git_output(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    if status is None:
        raise EvidenceError(
            "git cannot say which sources are uncommitted", where=root, remedy=f"git -C {root} status"
        )
    files = (top / os.fsdecode(entry[3:]) for entry in status.split(b"\0") if entry)
    changed = {one for one in files if "__pycache__" not in one.parts and not _is_of_a_bundle(one, outputs)}
    changed.update(_passed_over(top, code))
    return Sources(
        project=project,
        commit=commit.decode("ascii").strip(),
        uncommitted=tuple(sorted(_shown(one, root) for one in changed)),
    )


_NOT_COMPARED = "hSs"
"""What ``git ls-files -v`` says of a file that is assumed to be unchanged, or whose work tree is skipped."""


def _passed_over(top: Path, code: Iterable[Path]) -> Iterator[Path]:
    """Yield what ``git status`` leaves out: ignored code, and changes that it is configured to overlook."""
    listed = (_git_output(top, "ls-files", "-z", "-v", "--recurse-submodules") or b"").split(b"\0")
    tags = {top / os.fsdecode(entry[2:]): chr(entry[0]) for entry in listed if entry}
    yield from (file for file in code if Path(os.path.realpath(file)) not in tags)
    for file, tag in tags.items():
        if tag in _NOT_COMPARED and file.exists() and _differs_from_commit(top, file):
            yield file


def _differs_from_commit(top: Path, file: Path) -> bool:
    name = file.relative_to(top).as_posix()
    return _git_output(top, "rev-parse", f"HEAD:{name}") != _git_output(top, "hash-object", "--", name)


def code_of(bound: Iterable[str], root: Path) -> frozenset[Path]:
    """Return the files that a falsifier runs: the bound ones, and the conftests that hold for them.

    Args:
        bound: files of the bound code, relative to the project.
        root: the project's folder, resolved.

    """
    files = {root / one for one in bound}
    folders = {folder for one in files for folder in one.parents if folder.is_relative_to(root)}
    return frozenset(files | {one for folder in folders if (one := folder / "conftest.py").exists()})


def _git_output(root: Path, *arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _is_of_a_bundle(path: Path, outputs: Iterable[Path]) -> bool:
    """Whether a bundle has a file of that name: any folder may be given for bundles, that of the code too."""
    return any(
        path.is_relative_to(folder) and is_name("/".join(path.relative_to(folder).parts[1:]))
        for folder in outputs
    )


def _shown(path: Path, root: Path) -> str:
    return os.fsencode(os.path.relpath(path, root)).decode("utf-8", "backslashreplace")


def imported() -> dict[str, str]:
    """Return the file of every Python module that this process has imported."""
    files = ((name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items()))
    return {name: file for name, file in files if isinstance(file, str) and file.endswith(".py")}


def refuse_other_code(
    bound: Iterable[str], project: Project, started_ns: int, loaded: Mapping[str, frozenset[str]]
) -> None:
    """Refuse evidence of code that is not what is bound.

    Args:
        bound: files of the bound code, relative to the project.
        project: the project.
        started_ns: when the session began, in nanoseconds since the epoch.
        loaded: name of a module -> the files that the processes of the session imported under it.

    Raises:
        EvidenceError: a file was written since, or another copy of it was imported.

    """
    root = project.modules.tree.root
    for path in sorted(set(bound)):
        file = root / path
        if file.stat().st_mtime_ns > started_ns:
            raise EvidenceError(
                "was written while the tests ran, so that nobody knows which code they ran",
                where=file,
                remedy="run them again",
            )
        own = os.path.realpath(file)
        for name in _names(path, project):
            for other in loaded.get(name, frozenset()):
                if os.path.realpath(other) != own:
                    raise EvidenceError(
                        f"the tests imported {name} from {other}, and the evidence would bind {path}",
                        where=root,
                        remedy="pip install -e ., or pythonpath in pytest's settings",
                    )


def _names(path: str, project: Project) -> Iterator[str]:
    """Yield the names that a file is imported under; pytest gives those of tests and conftests itself."""
    file = os.path.basename(path)
    if file == "conftest.py" or any(fnmatch(file, pattern) for pattern in project.fixtures.test_files):
        return
    parts = path.removesuffix(".pyi").removesuffix(".py").removesuffix("/__init__").split("/")
    for base in project.modules.roots:
        head = base.split("/") if base else []
        if parts[: len(head)] == head and len(parts) > len(head):
            yield ".".join(parts[len(head) :])
