"""What is built for a release: small enough, complete, and without what only the checkout needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MB = 1_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_is_small(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size <= 5 * MB
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("apr_falsify/")}
    package = ROOT / "src" / "apr_falsify"
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    assert held == {name for name in files if "__pycache__" not in name}


def test_the_source_distribution_is_small_and_builds_the_wheel(built: Path, tmp_path: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    assert archive.stat().st_size <= 6 * MB
    with tarfile.open(archive) as packed:
        assert not {name.split("/")[1] for name in packed.getnames()} & {"tests", "evidence", "benchmarks"}
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    (own,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(own) as other:
        assert one.namelist() == other.namelist()
