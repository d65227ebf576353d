"""What is kept between runs hides no change: of a source, a manifest, a missing file, a project around."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from tests.acceptance.test_broken_crates import ADDS, CONTRACT, MANIFEST

LIBRARY = "#[cfg(test)]\nmod tests;\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))
    project = tmp_path / "project"
    write(project, "Cargo.toml", MANIFEST)
    write(project, "src/lib.rs", LIBRARY)
    write(project, "src/tests.rs", ADDS)
    write(project, "contracts/c-v1.yaml", CONTRACT.format("cargo test -p demo tests::adds"))
    return project


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def codes(root: Path) -> list[str]:
    """Codes of a run, which are those of a run without anything kept, and of the next one."""
    found, again, afresh = (
        [one.problem.code for one in validate((root / "contracts",), cached=cached).shown]
        for cached in (True, True, False)
    )
    assert found == again == afresh
    return found


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("src/tests.rs", ADDS.replace("adds", "adz"), "test-not-found"),
        ("src/tests.rs", ADDS.replace("#[test]", "#[test]\n#[ignore]"), "test-ignored"),
        ("src/lib.rs", "#[cfg(unset)]\nmod tests;\n", "test-not-collected"),
        ("src/lib.rs", "// mod tests;\n", "test-not-collected"),
        ("Cargo.toml", MANIFEST.replace("demo", "other"), "test-not-found"),
        ("Cargo.toml", MANIFEST + "[lib]\ntest = false\n", "test-not-found"),
    ],
)
def test_a_change_is_seen_and_so_is_its_taking_back(root: Path, name: str, text: str, code: str) -> None:
    before = (root / name).read_text(encoding="utf-8")
    assert codes(root) == []
    write(root, name, text)
    assert codes(root) == [code]
    write(root, name, before)
    assert codes(root) == []


def test_an_option_that_a_setting_comes_to_set_is_seen(root: Path) -> None:
    write(root, "src/lib.rs", "#[cfg(special)]\nmod tests;\n")
    assert codes(root) == ["test-not-collected"]
    write(root, ".cargo/config.toml", '[build]\nrustflags = ["--cfg", "special"]\n')
    assert codes(root) == []


def test_a_file_that_was_missing_is_seen_when_it_comes(root: Path) -> None:
    write(root, "contracts/c-v1.yaml", CONTRACT.format("bash scripts/check.sh"))
    assert codes(root) == ["file-not-found"]
    write(root, "scripts/check.sh", "true\n")
    assert codes(root) == []


def test_a_python_test_that_comes_to_be_skipped_is_seen(root: Path) -> None:
    write(root, "contracts/c-v1.yaml", CONTRACT.format("pytest tests -k adds"))
    write(root, "tests/test_a.py", "def test_adds(): assert 1 + 1 == 2\n")
    assert codes(root) == []
    write(root, "tests/test_a.py", "import pytest\npytestmark = pytest.mark.skip\ndef test_adds(): ...\n")
    assert codes(root) == ["test-ignored"]
    write(root, "tests/test_a.py", "def test_subtracts(): ...\n")
    assert codes(root) == ["test-not-found"]


def test_a_project_that_comes_to_be_around_a_contract_is_seen(root: Path) -> None:
    for name in ("Cargo.toml", "src/lib.rs", "src/tests.rs"):
        (root / name).unlink()
    (root / "src").rmdir()
    assert codes(root) == ["unresolved-name"]
    write(root, "Cargo.toml", MANIFEST)
    write(root, "src/lib.rs", "")
    assert codes(root) == ["test-not-found"]


def test_a_file_of_the_same_size_and_time_is_read_again_while_it_is_fresh(root: Path) -> None:
    import os

    assert codes(root) == []
    path = root / "src/tests.rs"
    stamp = path.stat()
    write(root, "src/tests.rs", ADDS.replace("adds", "adze"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert codes(root) == ["test-not-found"]
