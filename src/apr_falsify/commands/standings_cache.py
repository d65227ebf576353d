"""States of evidence stored between runs, by the content of all that they rest on.

The key digests every contract that names a bundle, every file of the evidence folder, every Python file of
the project, the settings of pytest, and this program: where none of these changed, no bundle is verified
anew. What is stored is JSON of states alone; a file that cannot be read counts as absent, and one that cannot
be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import apr_falsify
from apr_falsify.contracts.standing import STATES, Standing
from apr_falsify.folders import cache_folder, write_whole

_FORMAT = "apr-falsify/standings/v1"
_MOST_KEPT = 64


def identity_of(root: Path, evidence: Path, contracts: Sequence[Path]) -> str | None:
    """Return the digest of all that the states of a project's evidence rest on.

    ``None`` where a bundle lies behind a link, so that it may change while the folder does not.
    """
    from apr_falsify.symbols.collect import SETTINGS_FILES
    from apr_falsify.symbols.tree import SourceTree

    if any(Path(folder, name).is_symlink() for folder, names, _ in os.walk(evidence) for name in names):
        return None

    whole = hashlib.blake2b(digest_size=20)
    tree = SourceTree(root)
    own = Path(apr_falsify.__file__).parent
    sources = [tree.root / file for file in tree.files() if file.endswith((".py", ".pyi"))]
    files = [*contracts, *(root / name for name in SETTINGS_FILES), *_below(evidence), *sources]
    for path in files:
        whole.update(os.fsencode(os.path.realpath(path)) + b"\0" + _digest(path))
    whole.update(f"{_FORMAT} {apr_falsify.__version__} {_age(own)}".encode())
    return whole.hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    for where, names, files in os.walk(folder):
        names.sort()
        yield from (Path(where, file) for file in sorted(files))


def _digest(path: Path) -> bytes:
    """Digest of a regular file; of anything else, which a bundle may not have, a word that says so."""
    try:
        if not path.is_file() or path.is_symlink():
            return b"no file"
        return hashlib.blake2b(path.read_bytes(), digest_size=20).digest()
    except OSError:
        return b"unreadable"


def _age(package: Path) -> int:
    """Newest change of this package: an edited rule must not find its old answers."""
    files = [entry for folder, _, _ in os.walk(package) for entry in os.scandir(folder)]
    return max(one.stat().st_mtime_ns for one in files if one.name.endswith(".py"))


def _path(identity: str) -> Path:
    return cache_folder() / "standings" / f"{identity}.json"


def stored(identity: str) -> dict[str, Standing] | None:
    """Return the states that were stored under an identity, ``None`` where there are none."""
    try:
        data = json.loads(_path(identity).read_text(encoding="utf-8"))
        found = {str(name): _standing(one) for name, one in data["standings"].items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if all(one.state in STATES for one in found.values()) else None


def _standing(data: Mapping[str, object]) -> Standing:
    why = data["why"]
    if not isinstance(why, list):
        raise ValueError("why is no list")
    texts = {key: str(data[key]) for key in ("state", "bundle", "lane")}
    return Standing(why=tuple(map(str, why)), **texts)


def store(identity: str, standings: Mapping[str, Standing]) -> None:
    """Write states, whole or not at all; on failure nothing is stored."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"schema": _FORMAT, "standings": {name: asdict(one) for name, one in standings.items()}}
        write_whole(path, json.dumps(data).encode("utf-8"))
        for old in sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)[:-_MOST_KEPT]:
            old.unlink(missing_ok=True)
