"""Changing bundles: one file as it is, or with a statement made anew so that every digest fits again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apr_falsify.evidence.bundle import Draft, bundle_files
from apr_falsify.evidence.facts_reader import read_facts
from apr_falsify.evidence.files import BUNDLE, STATEMENT, Contents, json_bytes, sha256
from apr_falsify.evidence.statement import statement_bytes
from apr_falsify.evidence.verify import Verification, verify_contents

Files = dict[str, bytes]


def files_of(draft: Draft, **options: Any) -> Files:
    """Return the files of a bundle without its report, which is larger than all the rest."""
    return bundle_files(draft, report=False, **options)


def checked(files: Mapping[str, bytes], **options: Any) -> Verification:
    """Verify files in memory."""
    return verify_contents(Contents(path=Path("bundle"), files=files), **options)


def codes(found: Verification) -> set[str]:
    return {problem.code for problem in found.problems}


def resealed(files: Mapping[str, bytes]) -> Files:
    """Return the files with a statement that fits them: what a forger can do where nothing pins it."""
    facts = read_facts(json.loads(files[BUNDLE]))
    digests = {name: sha256(data) for name, data in files.items()}
    return {**files, STATEMENT: statement_bytes(facts, digests)}


def edited(files: Mapping[str, bytes], name: str, change: Callable[[Any], object]) -> Files:
    """Let ``change`` alter a JSON file; the statement stays."""
    data = json.loads(files[name])
    change(data)
    return {**files, name: json_bytes(data)}


def forged(files: Mapping[str, bytes], name: str, change: Callable[[Any], object]) -> Files:
    """The same, with a statement that fits."""
    return resealed(edited(files, name, change))


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write files to ``folder``."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
