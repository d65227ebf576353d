"""Comparing contracts with those of a commit: versions, statuses, evidence, and falsifiers that went away.

Git is asked by argument lists, never through a shell, and only for objects: nothing is checked out.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.files import read_bytes, shown_path
from apr_falsify.contracts.model import Contract, read_contract
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.rules.history import HISTORY_RULES, removed_file
from apr_falsify.contracts.source import Mapping, parse
from apr_falsify.errors import UsageError, nearest


def history_problems(paths: Iterable[Path], ref: str) -> list[Problem]:
    """Problems between the contracts now and those of ``ref``.

    Raises:
        UsageError: not in a git repository, or it has no such commit.

    """
    asked = [path.absolute() for path in paths]
    root = _root(asked[0])
    commit = _commit(root, ref)
    problems: list[Problem] = []
    now = {os.path.realpath(path): path for path in discover(asked)}
    for relative, blob in _files(root, commit, asked):
        path = os.path.realpath(root / relative)
        if path in now and _is_blob(now[path], blob):
            continue
        shown = shown_path(root / relative)
        before = _contract(shown, _show(root, commit, relative))
        after = _now(now[path], shown) if path in now else None
        if before is not None:
            problems.extend(_compare(before, after, shown, exists=path in now))
    return problems


def _compare(before: Contract, after: Contract | None, shown: str, *, exists: bool) -> Iterator[Problem]:
    if after is None:
        if not exists:
            yield from removed_file(before, shown)
        return
    for rule in HISTORY_RULES:
        yield from rule(before, after)


def _git(root: Path, *arguments: str) -> bytes | None:
    """Output of a git command, None where it fails."""
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.stdout if done.returncode == 0 else None


def tags_at_head(folder: Path) -> list[str]:
    """Return the tags of the commit that is checked out; none outside a repository."""
    try:
        return (_git(folder, "tag", "--points-at", "HEAD") or b"").decode("utf-8", "replace").split()
    except FileNotFoundError:
        return []  # git is not installed


def _root(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    try:
        found = _git(folder, "rev-parse", "--show-toplevel")
    except FileNotFoundError:
        raise UsageError("git is not installed", where="--against") from None
    if found is None:
        raise UsageError("is not in a git repository", where=folder, remedy="leave out --against")
    return Path(found.decode().rstrip("\n"))


def _commit(root: Path, ref: str) -> str:
    if not ref or ref.startswith("-"):
        raise UsageError(f"{ref!r} is no git revision", where="--against", remedy="--against origin/main")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found is None:
        names = (_git(root, "for-each-ref", "--format=%(refname:short)") or b"").decode().split()
        remedy = nearest(ref, names) or "git fetch, or name a branch, tag or commit"
        raise UsageError(f"git knows no commit {ref!r}", where=root, remedy=remedy)
    return found.decode().strip()


def _files(root: Path, commit: str, asked: list[Path]) -> list[tuple[str, str]]:
    """Contracts of the commit below the paths asked for, each with the id of its content."""
    inside = []
    for path in asked:
        try:
            inside.append(Path(os.path.realpath(path)).relative_to(os.path.realpath(root)).as_posix())
        except ValueError:
            raise UsageError("is not in the repository", where=path, expected=str(root)) from None
    listed = _git(root, "ls-tree", "-r", "-z", commit, "--", *inside) or b""
    rows = [row.decode("utf-8", "surrogateescape").partition("\t") for row in listed.split(b"\0") if row]
    return [(name, head.split()[2]) for head, _, name in rows if re.search(r"\.ya?ml$", name)]


def _is_blob(path: Path, blob: str) -> bool:
    """Whether a file has the content of a git object: then nothing changed, and git need not be asked."""
    raw = read_bytes(path)
    if isinstance(raw, Problem):
        return False
    algorithm = "sha1" if len(blob) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest() == blob


def _show(root: Path, commit: str, relative: str) -> bytes:
    return _git(root, "cat-file", "blob", f"{commit}:{relative}") or b""


def _contract(shown: str, raw: bytes) -> Contract | None:
    data = parse(shown, raw).data
    return read_contract(shown, data) if isinstance(data, Mapping) else None


def _now(path: Path, shown: str) -> Contract | None:
    raw = read_bytes(path)
    return None if isinstance(raw, Problem) else _contract(shown, raw)
