"""Runs in passes and of quantised weights in the exam: what is seeded, what is planned, what is found."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from apr_falsify.commands.hosts import TensorHost, TorchHost, TorchModels
from apr_falsify.commands.hosts_in_passes import FilesHost, PassesHost
from apr_falsify.exam.cases import FILES, ExamCase, Host
from apr_falsify.exam.faults_in_passes import IN_PASSES
from apr_falsify.exam.faults_of_weights import OF_WEIGHTS
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.kernels import KERNELS
from apr_falsify.exam.material import EVERY_SETTING, Material
from apr_falsify.exam.phases import AT_ONCE, PHASES, SHORTEST
from apr_falsify.exam.plan import ExamPlan
from apr_falsify.exam.plan_in_passes import CORRECT_TEXTS, PASSES_HOST, SEEDS, further_cases
from apr_falsify.exam.quantised import SCHEMES, nearest
from apr_falsify.exam.recipes import case_of, key_of, recipe_of
from apr_falsify.exam.store import Store
from apr_falsify.exam.trial import COUNTS_FROM, Examiner
from apr_falsify.formats.quantised.levels import FP8
from apr_falsify.model.passes import Passes
from apr_falsify.numerics.operand_rules import RULES, Operation, by_pass
from apr_falsify.oracle.patch_names import PATCHED_IN_PASSES
from tests.sampling import one_in
from tests.unit.helpers import TINY

MODELS = ("tiny-qwen2", "llama-like", "qwen3-like", "mistral-like")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    natural = tuple(range(100, 200))
    return Store(tmp_path_factory.mktemp("models"), TINY, encode=lambda model, text: natural)


@pytest.fixture(scope="module")
def examiner(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Examiner:
    loaded = TorchModels(store)
    hosts: dict[str, Host] = {
        "tensors": TensorHost(readable=False),
        "torch": TorchHost(loaded),
        PASSES_HOST: PassesHost(),
        FILES: FilesHost(),
    }
    return Examiner(store, hosts, loaded.capture, tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def planned(store: Store, examiner: Examiner) -> list[ExamCase]:
    return list(further_cases(ExamPlan(models=MODELS), store, examiner.hosts))


def of_so_many(planned: list[ExamCase], faults: int) -> list[ExamCase]:
    return [case for case in planned if len(case.seeded) == faults]


def test_the_catalogue_has_at_least_forty_faults_of_caches_and_quantised_weights() -> None:
    assert len({fault.name for fault in (*IN_PASSES, *OF_WEIGHTS)}) >= 40
    assert all(fault.phases and fault.formula for fault in IN_PASSES)
    assert all(fault.settings and (fault.edit or fault.parts) for fault in OF_WEIGHTS)
    assert {name for fault in IN_PASSES for name in fault.phases} <= PHASES.keys()
    named = {name for fault in (*IN_PASSES, *OF_WEIGHTS) for name in fault.settings}
    assert named <= EVERY_SETTING.keys()
    assert {fault.name for fault in IN_PASSES} >= PATCHED_IN_PASSES


def test_every_fault_is_seeded_alone_and_a_third_of_those_of_passes_in_torch(
    planned: list[ExamCase],
) -> None:
    alone = Counter(case.seeded[0].fault.name for case in of_so_many(planned, 1))
    assert alone.keys() == {fault.name for fault in (*IN_PASSES, *OF_WEIGHTS)}
    in_torch = {case.seeded[0].fault.name for case in of_so_many(planned, 1) if case.host == "torch"}
    assert len(in_torch & {fault.name for fault in IN_PASSES}) >= len(IN_PASSES) / 4
    assert len(of_so_many(planned, 2)) >= 100


def test_there_are_five_hundred_correct_runs_none_twice(planned: list[ExamCase]) -> None:
    correct = of_so_many(planned, 0)
    assert len({key_of(case) for case in correct}) == len(correct) >= 500
    assert {case.phase for case in correct} == PHASES.keys()
    assert {case.kernel for case in correct} == KERNELS.keys()
    assert {case.material.kind for case in correct if case.material.scheme} == SCHEMES.keys()
    assert {case.host for case in correct} == {PASSES_HOST, "torch", FILES}


def test_every_text_meets_every_seed_phase_length_and_kernel_in_correct_runs(
    planned: list[ExamCase],
) -> None:
    correct = of_so_many(planned, 0)
    texts = {case.text for case in correct}
    assert texts == set(CORRECT_TEXTS)
    for of in (
        lambda case: case.material.seed,
        lambda case: case.phase,
        lambda case: len(case.tokens),
        lambda case: case.kernel,
        lambda case: case.host,
    ):
        values = {of(case) for case in correct}
        met = {(of(case), case.text) for case in correct}
        assert met == {(value, text) for value in values for text in texts}
    assert {case.material.seed for case in correct} == set(range(SEEDS))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("tokens", [SHORTEST, 12, 33])
def test_a_phase_lays_out_all_tokens(phase: str, tokens: int) -> None:
    passes = PHASES[phase].passes(tokens)
    assert (passes or Passes.whole(tokens)).tokens == tokens
    assert (passes is None) == (phase == AT_ONCE)


def test_a_case_in_passes_is_the_same_after_a_way_through_json(planned: list[ExamCase]) -> None:
    for case in one_in(97, planned):
        assert case_of(recipe_of(case)) == case


def test_a_file_is_compared_with_the_plain_model() -> None:
    material = Material(name="llama-like", seed=0, kind="awq")
    case = ExamCase(host=FILES, material=material, setting=EVERY_SETTING["awq"], tokens=(5, 6))
    assert (case.reference.kind, case.reference.name) == ("", "llama-like")
    assert material.file_name == "llama-like-0-awq"


def test_the_nearest_code_is_the_one_a_search_over_all_finds() -> None:
    table = FP8["F8_E4M3"]
    values = np.random.default_rng(0).normal(0, 100, 500)
    finite = np.flatnonzero(np.isfinite(table))
    best = np.abs(values[:, None] - table[finite].astype(np.float64)).min(axis=1)
    np.testing.assert_array_equal(np.abs(values - table[nearest(values, table)].astype(np.float64)), best)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_checkpoint_stands_for_nearly_its_weights(scheme: str, store: Store) -> None:
    sound = store.model(Material(name="llama-like", seed=0))
    held = store.model(Material(name="llama-like", seed=0, kind=scheme))
    assert held.geometry == sound.geometry
    ours, theirs = (model.weights.tensor("down", 1).rows(0, 128) for model in (sound, held))
    off = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    assert 0 < off < 0.25, off


def test_a_scale_that_spans_tokens_is_of_one_pass() -> None:
    rule = next(rule for rule in RULES[Operation.SCORES] if rule.name == "int8 k cache, a scale per head")
    assert by_pass(rule, (3,)) is rule
    heads = np.array([1.0, 50.0, -127.0, 0.4, 254.0]).reshape(5, 1)
    # Each of the steps of 1 in the first pass, of 2 in the second; of 2 in both where they came together.
    np.testing.assert_allclose(
        by_pass(rule, (3, 2)).held_right(heads, 1, 1)[:, 0], [1, 50, -127, 0, 254], rtol=1e-6
    )
    np.testing.assert_allclose(rule.held_right(heads, 1, 1)[:, 0], [0, 50, -128, 0, 254], rtol=1e-6)
    plain = next(rule for rule in RULES[Operation.SCORES] if rule.name == "f16 k")
    assert by_pass(plain, (3, 2)) is plain


def test_a_decode_step_alone_with_a_cache_in_8_bits_is_not_accused(examiner: Examiner) -> None:
    """Keys of earlier passes are the oracle's: one beside an edge between two steps is held on either side.

    The run of which the exam once accused two stages.
    """
    recipe = {
        "host": PASSES_HOST,
        "model": "tiny-qwen2",
        "seed": 1,
        "kind": "",
        "rows": "",
        "setting": "int8 cache, a scale per head",
        "kernel": "own",
        "text": "one token repeated",
        "phase": "the last step alone",
        "tokens": [91] * 17,
        "faults": [],
    }
    outcome = examiner.trial(case_of(recipe))
    assert (outcome.grade, outcome.found) == (Grade.LOCATED, ())


def test_a_sample_of_the_faults_is_located_and_of_the_correct_runs_acquitted(
    examiner: Examiner, planned: list[ExamCase]
) -> None:
    wrong = []
    for case in (*one_in(250, of_so_many(planned, 1)), *one_in(400, of_so_many(planned, 2), start=3)):
        outcome = examiner.trial(case)
        if outcome.grade is not Grade.LOCATED and outcome.level >= COUNTS_FROM:
            wrong.append((case.name, outcome.found, outcome.said))
    for case in one_in(250, of_so_many(planned, 0), start=1):
        outcome = examiner.trial(case)
        if outcome.grade is not Grade.LOCATED:
            wrong.append((case.name, outcome.found, outcome.said))
    assert not wrong
