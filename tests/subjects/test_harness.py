"""Every runtime of the registry through the harness."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from apr_falsify.commands.specs import RUNTIMES
from tests.llama_models import package_or_skip
from tests.sampling import one_in
from tests.subjects.harness import CHECKS, DRIVEN, UNDRIVEN

CASES = [
    (name, check)
    for name, driven in DRIVEN.items()
    for check in one_in(3 if name == "torch" else 1, [one for one in CHECKS if one not in driven.unfit])
]
"""One check in three of what is wired by replay: each runs the oracle and wires, which takes seconds."""


def _marked(name: str, check: str) -> object:
    """A case with the markers that say what it needs."""
    needs = {"real_apr": DRIVEN[name].needs == "apr", "live": DRIVEN[name].package == "llama_cpp"}
    marks = [getattr(pytest.mark, marker) for marker, needed in needs.items() if needed]
    return pytest.param(name, check, marks=marks, id=f"{name}-{check}")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path_factory.getbasetemp() / "apr-falsify-cache"))


@pytest.mark.parametrize(("name", "check"), [_marked(*case) for case in CASES])
def test_a_subject_keeps_what_every_subject_promises(tmp_path: Path, name: str, check: str) -> None:
    driven = DRIVEN[name]
    if driven.needs is not None and shutil.which(driven.needs) is None:
        pytest.skip(f"no {driven.needs} binary on PATH")
    if driven.package is not None:
        package_or_skip(driven.package)
    CHECKS[check](driven, tmp_path)


def test_every_runtime_of_the_registry_has_a_line() -> None:
    assert {driven.runtime for driven in DRIVEN.values()} | UNDRIVEN.keys() == RUNTIMES.keys()
    assert all(reason for reason in UNDRIVEN.values())


def test_a_check_that_does_not_apply_is_a_known_one_and_has_a_reason() -> None:
    for name, driven in DRIVEN.items():
        assert driven.unfit.keys() <= CHECKS.keys(), name
        assert all(len(reason.split()) > 3 for reason in driven.unfit.values()), name
    assert {check for _, check in CASES} == CHECKS.keys()
