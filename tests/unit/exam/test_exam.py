"""The exam grades as it should: answers made by hand, a blind comparison, faults of known size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.commands.hosts import FormulaHost, TensorHost, TorchHost, TorchModels
from apr_falsify.compare.attempts import Breakdown
from apr_falsify.compare.localise import bisect
from apr_falsify.exam import trial
from apr_falsify.exam.cases import ExamCase, Host, Seeded
from apr_falsify.exam.examination import Examination
from apr_falsify.exam.fault import Spread
from apr_falsify.exam.faults import CATALOGUE, fault_named
from apr_falsify.exam.grades import Grade, grade_of
from apr_falsify.exam.material import BLUEPRINTS, SETTINGS, Material, tokens_of
from apr_falsify.exam.store import Store
from apr_falsify.exam.tally import bound_of, goals, to_json
from apr_falsify.exam.trial import Examiner, TrialOutcome
from apr_falsify.model.stages import APR_STAGES, STAGES, Key
from apr_falsify.numerics.operand_rules import PLAIN, Operation
from apr_falsify.oracle.faulted import PATCHES
from apr_falsify.oracle.patch_names import PATCHED
from apr_falsify.traces.capture import MemorySink, Request
from tests.unit.helpers import TINY

Q: Key = Key(0, "q_post_rope")
K: Key = Key(0, "k_post_rope")


def test_the_catalogue_has_at_least_sixty_faults_that_can_be_seeded_somewhere() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE) >= 60
    for fault in CATALOGUE:
        ways = (fault.formula, fault.edit, fault.config, fault.parts, fault.phases, fault.settings)
        assert any(ways)
        assert set(fault.stages) <= STAGES.keys()


def test_every_stage_of_a_forward_pass_has_a_fault() -> None:
    assert {name for fault in CATALOGUE for name in fault.stages} >= {*APR_STAGES} - {
        "moe_router",
        "moe_ffn_out",
        "moe_router_indices",
    }


def test_every_patch_of_torch_belongs_to_a_fault() -> None:
    assert PATCHES.keys() == PATCHED <= {fault.name for fault in CATALOGUE}


@pytest.mark.parametrize(
    ("required", "truth", "found", "grade"),
    [
        ({Q, K}, {Q, K}, {Q, K}, Grade.LOCATED),
        ({Q}, {Q, K}, {Q, K}, Grade.LOCATED),
        ({Q, K}, {Q, K}, {Q}, Grade.MISSED),
        ({Q}, {Q}, set(), Grade.MISSED),
        (set(), {Q}, set(), Grade.MISSED),
        ({Q}, {Q}, {Q, K}, Grade.WRONG),
        ({Q}, {Q}, {K}, Grade.WRONG),
        (set(), set(), set(), Grade.LOCATED),
        (set(), set(), {Q}, Grade.WRONG),
    ],
)
def test_an_answer_is_right_only_if_it_names_what_is_wrong_and_nothing_else(
    required: set[Key], truth: set[Key], found: set[Key], grade: Grade
) -> None:
    assert grade_of(required, truth, found) is grade


@pytest.mark.parametrize(("count", "bound"), [(0, 1.0), (1, 0.95), (500, 0.005974), (3000, 0.000998)])
def test_no_false_alarm_in_so_many_runs_bounds_their_rate(count: int, bound: float) -> None:
    assert bound_of(count) == pytest.approx(bound, rel=1e-3)


def test_an_exam_that_held_nothing_has_met_no_goal() -> None:
    assert not any(goals(Examination()).values())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("models"), TINY)


@pytest.fixture
def examiner(store: Store, tmp_path: Path) -> Examiner:
    loaded = TorchModels(store)
    hosts: dict[str, Host] = {
        "formula": FormulaHost(),
        "tensors": TensorHost(readable=False),
        "conversion": TensorHost(readable=True),
        "torch": TorchHost(loaded),
    }
    return Examiner(store, hosts, loaded.capture, tmp_path)


def case_of(
    name: str | None, host: str = "formula", model: str = "llama-like", amount: float = 1.0
) -> ExamCase:
    seeded = () if name is None else (Seeded(fault=fault_named(name), layer=1, seed=3, amount=amount),)
    return ExamCase(
        host=host,
        material=Material(name=model, seed=0),
        setting=SETTINGS["f32"],
        tokens=tokens_of(1, 7, 512),
        seeded=seeded,
    )


@pytest.mark.parametrize("host", ["formula", "tensors", "conversion", "torch"])
def test_a_fault_is_located_on_every_host(examiner: Examiner, host: str) -> None:
    outcome = examiner.trial(case_of("down-one-channel", host))
    assert (outcome.grade, outcome.found) == (Grade.LOCATED, (Key(1, "ffn_out"),))
    assert outcome.explained
    assert outcome.level > 100
    assert max(outcome.right) < 1
    # Wrong tensors that can be read are found as such; what was computed with them is right.
    assert (min(outcome.guilty) < 1) is (host == "conversion")


def test_hosts_that_know_what_they_changed_and_hosts_that_do_not_agree_on_how_much(
    examiner: Examiner,
) -> None:
    known = examiner.trial(case_of("attn-norm-scaled", "tensors"))
    seen = examiner.trial(case_of("attn-norm-scaled", "torch"))
    assert known.level == pytest.approx(seen.level, rel=0.01)


@pytest.mark.parametrize("level", [0.5, 3.0])
def test_a_fault_can_be_made_as_small_as_wanted(examiner: Examiner, level: float) -> None:
    whole = examiner.trial(case_of("o-one-channel"))
    small = examiner.trial(case_of("o-one-channel", amount=level / whole.level))
    assert small.level == pytest.approx(level, rel=0.2)
    assert small.required == ()


def test_a_blind_comparison_locates_nothing(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(*arguments: object, **options: object) -> object:
        return replace(bisect(*arguments, **options), findings=())

    monkeypatch.setattr(trial, "bisect", blind)
    outcome = examiner.trial(case_of("o-one-channel"))
    assert outcome.grade is Grade.MISSED
    assert not all(goals(Examination(single=[outcome], correct=[outcome], pairs=[outcome])).values())


def test_a_comparison_that_breaks_down_fails_the_trial_and_not_the_exam(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> object:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(trial, "bisect", broken)
    outcome = examiner.trial(case_of(None))
    assert outcome.grade is Grade.WRONG
    assert outcome.said == ("the comparison broke down: ZeroDivisionError: oh",)


def test_a_part_of_a_comparison_that_breaks_down_costs_no_verdict_and_fails_the_trial(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Breakdown(what="the replay", key=(0, "o_proj"), error="ZeroDivisionError: oh", needed=True)

    def partly(*arguments: object, **options: object) -> object:
        return replace(bisect(*arguments, **options), breakdowns=(part,))

    monkeypatch.setattr(trial, "bisect", partly)  # no input is known that breaks a part of it down
    outcome = examiner.trial(case_of(None))
    assert outcome.grade is Grade.WRONG
    assert outcome.said == ("the replay broke down: ZeroDivisionError: oh",)


def test_the_counts_of_the_result_are_those_of_its_outcomes() -> None:
    def outcome(name: str, grade: Grade) -> TrialOutcome:
        case = case_of(name)
        return TrialOutcome(
            case=case, grade=grade, published=Grade.MISSED, explained=grade is Grade.LOCATED, level=99.0,
            required=(), found=(), said=(),
        )  # fmt: skip

    held = [
        outcome("o-doubled", Grade.LOCATED),
        outcome("o-doubled", Grade.WRONG),
        outcome("k-stale", Grade.MISSED),
    ]
    result = to_json(Examination(single=held))
    assert result["single"] == {
        "faults": 2, "total": 3, "located": 1, "wrong": 1, "missed": 1, "explained": 1,
    }  # fmt: skip
    assert result["published_rule"]["single"]["located"] == 0
    assert len(result["failures"]) == 2
    assert {row["fault"]: row["total"] for row in result["rows"] if row["total"]} == {
        "o-doubled": 2,
        "k-stale": 1,
    }


@pytest.mark.parametrize("fault", [f for f in CATALOGUE if f.spread is Spread.EVERY], ids=lambda f: f.name)
def test_a_fault_of_every_layer_is_wrong_in_every_layer(store: Store, fault: object) -> None:
    geometry = store.model(Material(name="tiny-qwen2", seed=0)).geometry
    truth = fault.truth(geometry, 1)
    assert {layer for layer, _ in truth} >= {0, 1, 2}


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0", "q4_k"])
def test_a_gguf_of_a_checkpoint_has_its_geometry_and_nearly_its_weights(store: Store, kind: str) -> None:
    sound = store.model(Material(name="tiny-qwen2", seed=0))
    held = store.model(Material(name="tiny-qwen2", seed=0, kind=kind))
    assert replace(held.geometry, norm_eps=0.0) == replace(sound.geometry, norm_eps=0.0)
    assert held.weights.tensor("q", 1).type == kind
    ours, theirs = (model.weights.tensor("q", 1).rows(0, 256) for model in (sound, held))
    if kind != "q4_k":  # whose blocks are drawn anew
        assert np.linalg.norm(theirs - ours) < 0.12 * np.linalg.norm(ours)
    assert np.std(theirs) == pytest.approx(np.std(ours), rel=0.3)


def test_a_gguf_of_the_llama_family_holds_q_and_k_as_a_conversion_stores_them(store: Store) -> None:
    sound = store.model(Material(name="llama-like", seed=0))
    held = store.model(Material(name="llama-like", seed=0, kind="q8_0"))
    assert held.weights.interleaved
    ours, theirs = (model.weights.tensor("k", 0).rows(0, 64) for model in (sound, held))
    np.testing.assert_allclose(theirs, ours, atol=0.01)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_the_embedded_runtime_runs_in_every_arithmetic(store: Store, setting: object) -> None:
    chosen = SETTINGS[setting.name]
    material = Material(name="tiny-qwen2", seed=0, kind=chosen.kind)
    request = Request(tokens=(5, 6, 7), layers=range(3), stages=tuple(STAGES))
    case = replace(case_of(None, model="tiny-qwen2"), material=material, setting=chosen)
    trace = FormulaHost().run(store, case, request, MemorySink()).trace
    assert len(trace.stages) == 54
    assert trace.provenance.dtype == chosen.store
    assert all(rule is not PLAIN for rule in chosen.operand_rules().values())
    assert set(chosen.rules) <= set(Operation)


def test_every_blueprint_can_be_made(store: Store) -> None:
    for name in (name for name, row in BLUEPRINTS.items() if not row.wide):
        assert store.model(Material(name=name, seed=1)).geometry.layers >= 2
