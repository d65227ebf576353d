"""Which runs in passes and of quantised weights the exam has: single faults, pairs, correct runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from apr_falsify.exam.cases import FILES, ExamCase, Host, Seeded
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.faults import PLAIN
from apr_falsify.exam.faults_in_passes import IN_PASSES
from apr_falsify.exam.faults_of_weights import OF_WEIGHTS as FAULTS_OF_WEIGHTS
from apr_falsify.exam.kernels import OWN
from apr_falsify.exam.material import (
    BLUEPRINTS,
    EVERY_SETTING,
    OF_CACHES,
    OF_WEIGHTS,
    SETTINGS,
    Material,
    Setting,
    tokens_of,
)
from apr_falsify.exam.phases import AT_ONCE, PHASES, SHORTEST
from apr_falsify.exam.plan import ExamPlan, are_apart
from apr_falsify.exam.store import Store
from apr_falsify.exam.texts import TEXTS
from apr_falsify.model.shape import Geometry

PASSES_HOST = "passes"

IN_PASSES_OF: Mapping[str, tuple[str, ...]] = {
    PASSES_HOST: ("tiny-qwen2", "llama-like", "qwen3-like", "mistral-like"),
    "torch": ("tiny-qwen2", "llama-like", "qwen3-like"),
}
"""Host -> the models that have faults of passes: in torch none with a window, whose cache forgets keys."""

QUANTISED = ("tiny-qwen2", "llama-like", "qwen3-like")
"""The models whose sizes all schemes divide."""

SETTINGS_IN_PASSES: Mapping[str, tuple[str, ...]] = {PASSES_HOST: ("f32", "f16"), "torch": ("f32", "f16")}
"""Host -> the settings of faults that name none, in turn."""

CORRECT_SETTINGS: Mapping[str, tuple[str, ...]] = {
    PASSES_HOST: (
        "f32",
        "f16",
        "bf16",
        "f32, sums in sequence",
        "q4_0 x q8_0 of 32",
        "q8_0 x q8_0 of 32",
        *OF_CACHES,
    ),
    "torch": ("f32", "f16", "bf16"),
}
"""Host -> the settings of correct runs in passes."""

OVERFLOWS = ("torch", "tiny-qwen2", "f16")
"""Host, model and format of which a padded run is no right one.

transformers adds -65504 to scores of -16 and below, which is -inf in f16: a row of padding is NaN then, and
in the next layer every row.
"""

WEIGHTS_HOSTS = (PASSES_HOST, "torch", FILES)

CORRECT_TEXTS = ("random", "natural", "one token repeated", "runs of repeats")
LENGTHS = (12, 9, 17, 33, 8)
PAIRS = 100
SEEDS = 2
LONGEST = 13
"""Tokens of runs with faults, at most."""


def further_cases(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give every n-th case of this part: single faults, pairs, correct runs."""
    for cases in (
        _in_passes(plan, store, hosts),
        _of_weights(plan, store, hosts),
        _pairs(plan, store, hosts),
        _correct_in_passes(plan, store, hosts),
        _correct_weights(plan, store, hosts),
    ):
        yield from itertools.islice(cases, 0, None, plan.further)


def _in_passes(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    for at, fault in enumerate(IN_PASSES):
        for host, names in IN_PASSES_OF.items():
            for turn, name in enumerate(_able(fault, store, [each for each in names if each in plan.models])):
                number, phases = at + turn, _phases(fault, host)
                setting = _setting(fault, SETTINGS_IN_PASSES[host], number)
                material = Material(name=name, seed=number % min(plan.seeds, SEEDS))
                if phases and _possible(store, hosts, host, fault, material, setting):
                    phase = phases[number % len(phases)]
                    yield _case(store, host, material, setting, number, (fault,), phase)


def _able(fault: Fault, store: Store, names: Sequence[str]) -> list[str]:
    """Return a third of the models that can have a fault, which one in turn over the faults."""
    able = [name for name in names if fault.fits(store.model(Material(name=name, seed=0)).geometry)]
    start = len(fault.name) % 3
    return able[start::3] or able[:1]


def _phases(fault: Fault, host: str) -> tuple[str, ...]:
    """Return the phases of a fault: in torch it is seeded without padding."""
    if host != "torch":
        return fault.phases
    return tuple(phase for phase in fault.phases if "padding" not in phase)


def _setting(fault: Fault, usual: Sequence[str], turn: int) -> Setting:
    names = fault.settings or usual
    return EVERY_SETTING[names[turn % len(names)]]


def _possible(
    store: Store, hosts: Mapping[str, Host], host: str, fault: Fault, material: Material, setting: Setting
) -> bool:
    if host not in hosts or not hosts[host].runs(material, setting):
        return False
    return hosts[host].can(fault, store.model(material).geometry, setting)


def _case(
    store: Store,
    host: str,
    material: Material,
    setting: Setting,
    turn: int,
    faults: Sequence[Fault],
    phase: str,
) -> ExamCase:
    geometry = store.model(material).geometry
    length = SHORTEST + 2 + turn % (LONGEST - SHORTEST - 1)
    layers = min(geometry.layers, 3)
    return ExamCase(
        host=host,
        material=material,
        setting=setting,
        tokens=tokens_of(turn % 5, length, geometry.vocab),
        seeded=tuple(
            Seeded(fault=fault, layer=(turn + at) % layers, seed=turn + 3 * at)
            for at, fault in enumerate(faults)
        ),
        phase=phase,
    )


def _of_weights(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    models = [name for name in QUANTISED if name in plan.models]
    for at, fault in enumerate(FAULTS_OF_WEIGHTS if models else ()):
        for turn, host in enumerate(WEIGHTS_HOSTS):
            number = at + turn
            setting = _setting(fault, (), number)
            name = models[number % len(models)]
            material = Material(name=name, seed=number % SEEDS, kind=setting.kind)
            if _possible(store, hosts, host, fault, material, setting):
                phase = (AT_ONCE, "decode", "chunks")[number // 2 % 3]
                yield _case(store, host, material, setting, number, (fault,), phase)


def _pairs(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give pairs of a fault of passes or weights with one of any kind, drawn at random."""
    rng = np.random.default_rng(20261201)
    names = [name for name in QUANTISED if name in plan.models]
    given = 0
    while names and given < PAIRS:
        host = (PASSES_HOST, PASSES_HOST, "torch")[int(rng.integers(3))]
        first = (IN_PASSES, FAULTS_OF_WEIGHTS)[int(rng.integers(4)) // 3]
        one, other = first[int(rng.integers(len(first)))], _other(rng)
        turn = int(rng.integers(1 << 16))
        setting = _common_setting((one, other), turn)
        phases = _common_phases((one, other), host)
        if setting is None or not phases or one is other:
            continue
        material = Material(name=names[turn % len(names)], seed=turn % SEEDS, kind=setting.kind)
        if not all(_possible(store, hosts, host, fault, material, setting) for fault in (one, other)):
            continue
        phase = phases[turn % len(phases)]
        case = _case(store, host, material, setting, turn, (one, other), phase)
        if are_apart(case.seeded, store.model(material).geometry):
            given += 1
            yield case


def _other(rng: np.random.Generator) -> Fault:
    table = (PLAIN, PLAIN, IN_PASSES, FAULTS_OF_WEIGHTS)[int(rng.integers(4))]
    return table[int(rng.integers(len(table)))]


def _common_setting(faults: Sequence[Fault], turn: int) -> Setting | None:
    """Return a setting that all faults may have, ``None`` where there is none."""
    stated = [set(fault.settings) for fault in faults if fault.settings]
    names = sorted(set.intersection(*stated)) if stated else ["f32"]
    return EVERY_SETTING[names[turn % len(names)]] if names else None


def _common_phases(faults: Sequence[Fault], host: str) -> tuple[str, ...]:
    own = [set(_phases(fault, host)) for fault in faults if fault.phases]
    shared = sorted(set.intersection(*own)) if own else ["decode", "chunks"]
    # A step alone borrows the oracle's keys, which are no longer the run's own where something else is wrong.
    return tuple(phase for phase in shared if not PHASES[phase].last_alone)


def _correct_in_passes(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    phases = [phase for phase in PHASES if phase != AT_ONCE]
    rng = np.random.default_rng(20261202)
    for host, settings in CORRECT_SETTINGS.items():
        for name in (name for name in ("mistral-like", *IN_PASSES_OF["torch"]) if name in plan.models):
            for setting in (SETTINGS.get(each) or OF_CACHES[each] for each in settings):
                if setting.kind and setting.kind not in BLUEPRINTS[name].kinds:
                    continue
                for phase in phases:
                    material = Material(name=name, seed=int(rng.integers(SEEDS)), kind=setting.kind)
                    if host not in hosts or not hosts[host].runs(material, setting):
                        continue
                    if (host, name, setting.store) != OVERFLOWS or "padding" not in phase:
                        yield _correct(plan, store, host, material, setting, rng, phase)


def _correct_weights(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    rng, turns = np.random.default_rng(20261203), itertools.count()
    for name in (name for name in QUANTISED if name in plan.models):
        for setting in OF_WEIGHTS.values():
            for host in (host for host in WEIGHTS_HOSTS if host in hosts):
                for seed in range(SEEDS):
                    phase = (AT_ONCE, "decode", "left padding", AT_ONCE, "chunks")[next(turns) % 5]
                    material = Material(name=name, seed=seed, kind=setting.kind)
                    yield _correct(plan, store, host, material, setting, rng, phase)


def _correct(
    plan: ExamPlan,
    store: Store,
    host: str,
    material: Material,
    setting: Setting,
    rng: np.random.Generator,
    phase: str,
) -> ExamCase:
    """Return a correct run.

    Text, length and kernel are drawn apart: taken in turn, some never met, since their counts have common
    factors with those of the phases and seeds.
    """
    text = CORRECT_TEXTS[int(rng.integers(len(CORRECT_TEXTS)))]
    length = LENGTHS[int(rng.integers(len(LENGTHS)))]
    turn = int(rng.integers(1 << 16))
    geometry: Geometry = store.model(material).geometry
    return ExamCase(
        host=host,
        material=material,
        setting=setting,
        tokens=TEXTS[text].ids(turn, length, geometry.vocab, store.natural(material.name)),
        kernel=plan.kernels[turn % len(plan.kernels)] if plan.kernels else OWN,
        text=text,
        phase=phase,
    )
