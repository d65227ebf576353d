"""Which correct runs a whole exam holds: enough, on every text, under every kernel, at every width."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from apr_falsify.commands.hosts import FormulaHost, TensorHost, TorchHost, TorchModels
from apr_falsify.exam.cases import ExamCase, Host
from apr_falsify.exam.correct import LENGTHS, correct_runs
from apr_falsify.exam.kernels import KERNELS
from apr_falsify.exam.material import BLUEPRINTS
from apr_falsify.exam.plan import WIDE_FAULTS, WIDE_MODEL, ExamPlan, wide_singles
from apr_falsify.exam.recipes import key_of
from apr_falsify.exam.store import Store
from apr_falsify.exam.texts import TEXTS
from tests.unit.helpers import TINY

NARROW = tuple(name for name in BLUEPRINTS if name != WIDE_MODEL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    natural = tuple(range(100, 200))
    return Store(tmp_path_factory.mktemp("models"), TINY, encode=lambda model, text: natural)


@pytest.fixture(scope="module")
def hosts(store: Store) -> dict[str, Host]:
    return {
        "formula": FormulaHost(),
        "tensors": TensorHost(readable=False),
        "conversion": TensorHost(readable=True),
        "torch": TorchHost(TorchModels(store)),
    }


@pytest.fixture(scope="module")
def planned(store: Store, hosts: dict[str, Host]) -> list[ExamCase]:
    return list(correct_runs(ExamPlan(models=(*NARROW, WIDE_MODEL)), store, hosts))


def test_a_whole_exam_holds_at_least_3000_correct_runs_none_twice(planned: list[ExamCase]) -> None:
    assert len({key_of(case) for case in planned}) == len(planned) >= 3000
    assert not any(case.seeded for case in planned)


def test_every_text_is_run_under_every_kernel_in_number(planned: list[ExamCase]) -> None:
    counts = Counter((case.text, case.kernel) for case in planned)
    assert counts.keys() == {(text, kernel) for text in TEXTS for kernel in KERNELS}
    assert min(counts.values()) >= 50


@pytest.mark.parametrize("every", [1, 29])
def test_every_kernel_computes_the_very_same_narrow_runs(
    every: int, store: Store, hosts: dict[str, Host]
) -> None:
    planned = list(correct_runs(ExamPlan(models=NARROW, correct=every), store, hosts))
    runs = {
        kernel: [key_of(replace(c, kernel="")) for c in planned if c.kernel == kernel] for kernel in KERNELS
    }
    first, *others = runs.values()
    assert len(set(first)) > 400 // every
    assert others == [first] * (len(KERNELS) - 1)


def test_token_counts_reach_from_2_to_1024(planned: list[ExamCase]) -> None:
    lengths = Counter(len(case.tokens) for case in planned)
    assert (min(lengths), max(lengths)) == (2, 1024)
    assert lengths[1024] >= 20


def test_every_text_is_run_at_every_length(planned: list[ExamCase]) -> None:
    narrow = {(case.text, len(case.tokens)) for case in planned if not case.material.wide}
    assert narrow >= {(text, length) for text in TEXTS for length in LENGTHS}


def test_repeated_tokens_are_run_a_thousand_times(planned: list[ExamCase]) -> None:
    repeated = [case for case in planned if len(set(case.tokens)) <= max(4, len(case.tokens) // 4)]
    assert len(repeated) >= 1000


def test_the_wide_model_is_run_in_every_format_on_both_hosts_and_every_text(planned: list[ExamCase]) -> None:
    wide = [case for case in planned if case.material.wide]
    kinds = BLUEPRINTS[WIDE_MODEL].kinds
    assert {(c.material.kind, c.host) for c in wide} == {(k, h) for k in kinds for h in ("formula", "torch")}
    assert {case.text for case in wide} == set(TEXTS)
    assert max(len(case.tokens) for case in wide) == 1024
    for kernel in KERNELS:
        assert {case.material.kind for case in wide if case.kernel == kernel} == set(kinds)


def test_no_wide_model_is_made_to_plan_its_runs(planned: list[ExamCase], store: Store) -> None:
    assert planned
    assert not list(store.directory.glob(f"{WIDE_MODEL}*"))


def test_a_sample_of_the_catalogue_is_seeded_at_width(store: Store, hosts: dict[str, Host]) -> None:
    cases = list(wide_singles(store, hosts))
    assert {case.host for case in cases} == hosts.keys() <= WIDE_FAULTS.keys()
    for case in cases:
        (seeded,) = case.seeded
        assert hosts[case.host].runs(case.material, case.setting)
        assert hosts[case.host].can(seeded.fault, store.geometry(case.material), case.setting)
    touched = {name for case in cases for name in case.seeded[0].fault.stages}
    assert touched >= {
        "qkv_matmul",
        "attn_scores",
        "attn_softmax",
        "attention",
        "ffn_gate",
        "ffn_out",
        "lm_head",
    }
