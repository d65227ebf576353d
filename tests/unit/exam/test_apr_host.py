"""The real ``apr`` as a host of the exam: on checkpoints and GGUF files, sound and faulty."""

from __future__ import annotations

import shutil

import pytest

from apr_falsify.commands.apr_host import find_apr, with_tokens
from apr_falsify.commands.hosts import TorchModels
from apr_falsify.exam.cases import ExamCase, Seeded
from apr_falsify.exam.correct import APR_SETTINGS
from apr_falsify.exam.faults import fault_named
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.store import Store
from apr_falsify.exam.trial import Examiner
from apr_falsify.model.stages import Key
from tests.unit.helpers import TINY

pytestmark = [
    pytest.mark.real_apr,
    pytest.mark.skipif(shutil.which("apr") is None, reason="no apr binary on PATH"),
]


@pytest.fixture(scope="module")
def examiner(tmp_path_factory: pytest.TempPathFactory) -> Examiner:
    folder = tmp_path_factory.mktemp("exam")
    store = Store(folder, TINY)
    loaded = TorchModels(store)
    host = find_apr(folder, lambda material: None)
    assert host is not None
    return Examiner(store, {"apr": with_tokens(host, store)}, loaded.capture, folder)


def case_of(examiner: Examiner, *, kind: str = "", rows: str = "", fault: str = "") -> ExamCase:
    tokens = examiner.hosts["apr"].fixed_tokens
    assert tokens is not None
    seeded = (Seeded(fault=fault_named(fault), layer=1, seed=3),) if fault else ()
    material = Material(name="tiny-qwen2", seed=0, kind=kind, rows=rows)
    setting = SETTINGS[APR_SETTINGS[kind]]
    return ExamCase(host="apr", material=material, setting=setting, tokens=tokens, seeded=seeded)


@pytest.mark.parametrize("kind", ["", "q4_k", "q8_0"])
def test_a_correct_run_is_acquitted_in_every_format_that_it_is_planned_in(
    examiner: Examiner, kind: str
) -> None:
    outcome = examiner.trial(case_of(examiner, kind=kind))
    assert (outcome.grade, outcome.said) == (Grade.LOCATED, ())
    assert max(outcome.right) < 1


def test_a_checkpoint_whose_rows_are_all_equal_gives_it_one_token_repeated(examiner: Examiner) -> None:
    case = case_of(examiner, rows="same")
    store = examiner.store
    table = store.model(case.material).weights.tensor("embed").rows(0, 512)
    assert (table == table[0]).all()
    assert len(examiner.trial(case).right) == 54


def test_a_fault_in_a_checkpoint_is_located(examiner: Examiner) -> None:
    outcome = examiner.trial(case_of(examiner, fault="k-bias-missing"))
    assert (outcome.grade, outcome.found) == (Grade.LOCATED, (Key(1, "qkv_bias"),))
    assert not list(examiner.store.directory.glob("spoiled*"))
