"""Which faults the exam seeds: single ones, random pairs, some at width. Everything is drawn from seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from apr_falsify.exam.cases import ExamCase, Host, Seeded
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.faults import PLAIN, fault_named
from apr_falsify.exam.kernels import KERNELS
from apr_falsify.exam.material import BLUEPRINTS, SETTINGS, Material, Setting, tokens_of
from apr_falsify.exam.store import Store
from apr_falsify.exam.texts import TEXTS
from apr_falsify.model.shape import Geometry

SMOLLM2 = "smollm2-135m"

WIDE_MODEL = "qwen2-wide"

MODELS: tuple[str, ...] = (
    "tiny-qwen2",
    "llama-like",
    "qwen3-like",
    "mistral-like",
    "qwen2-like",
    SMOLLM2,
    WIDE_MODEL,
)
"""The models that can be requested."""

SETTINGS_OF: Mapping[str, tuple[str, ...]] = {
    "formula": ("f32", "f16", "q4_0 x q8_0 of 32"),
    "tensors": ("f32", "q4_0 x q8 of 256", "f16"),
    "conversion": ("q4_0 x q8_0 of 32", "f16", "f32"),
    "torch": ("f32", "f16"),
    "apr": ("f32",),
}
"""Host -> the settings in which it has every fault, taken in turn over models and seeds."""

APR_MODELS = ("tiny-qwen2", "qwen2-like", WIDE_MODEL)
"""The models on which ``apr`` 0.72.3 is right.

On a HuggingFace Llama or Mistral it turns neighbouring channels and ignores rope scaling and windows, on a
Qwen3 it skips the head norms: a correct run of those is no correct run.
"""

_APART = ("qwen2-like", WIDE_MODEL)
"""Models whose faults are chosen apart: ``apr`` alone has any in the first."""

_ONLY_FOR: Mapping[str, str] = {"mistral-like": "window"}
"""Model -> what a fault must need to be seeded in it."""

SMOLLM2_FAULTS = 20
SMOLLM2_SETTING = replace(SETTINGS["q4_1 x q8_1 of 32"], kind="")
"""What llama.cpp does with that file, whose weights are q4_1 already."""

SINGLE, PAIRS, CORRECT, SMALL, FURTHER = PARTS = (
    "single faults",
    "pairs of faults",
    "correct runs",
    "small faults",
    "passes and quantised weights",
)
"""The parts of an exam."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamPlan:
    """How much the exam asks.

    Attributes:
        models: the models.
        seeds: how many seeds of each.
        faults: the faults.
        repetitive: on how many repetitive texts each fault is seeded once more.
        pairs: how many pairs.
        correct: how many of the narrow models' correct runs take place: every n-th.
        kernels: the kernels under which correct models run.
        longest: how many tokens a correct run has at most.
        further: how many of the cases with passes and quantised weights take place: every n-th.
        parts: the parts of the exam that are run.

    """

    models: tuple[str, ...]
    seeds: int = 3
    faults: tuple[Fault, ...] = PLAIN
    repetitive: int = 2
    pairs: int = 600
    correct: int = 1
    kernels: tuple[str, ...] = tuple(KERNELS)
    longest: int = 1024
    further: int = 1
    parts: tuple[str, ...] = PARTS


def singles(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give the cases of one fault: each in every model and seed, on every host that can have it."""
    for at, fault in enumerate(plan.faults):
        for host in (name for name in SETTINGS_OF if name in hosts):
            for turn, name in enumerate(plan.models):
                for seed in range(plan.seeds):
                    yield from _single(store, hosts, host, fault, name, seed, at + turn + seed)


def _single(
    store: Store, hosts: Mapping[str, Host], host: str, fault: Fault, name: str, seed: int, turn: int
) -> Iterator[ExamCase]:
    if name == SMOLLM2 or name not in _models_of(host):
        return
    if host in ("tensors", "conversion") and (turn % 2 == 0) != (host == "tensors"):
        return
    if host == "torch" and turn % 3 == 2 and "apr" in hosts:
        return  # for time: with apr, two of three are a third of all that shares no code with the replay
    if name in _ONLY_FOR and _ONLY_FOR[name] not in fault.needs:
        return
    setting = _setting(host, name, turn)
    material = Material(name=name, seed=seed, kind=setting.kind)
    geometry = store.model(material).geometry
    if hosts[host].runs(material, setting) and hosts[host].can(fault, geometry, setting):
        yield ExamCase(
            host=host,
            material=material,
            setting=setting,
            tokens=hosts[host].fixed_tokens or tokens_of(seed, 6 + turn % 4, geometry.vocab),
            seeded=(Seeded(fault=fault, layer=_layer(geometry, turn), seed=turn),),
        )


def _models_of(host: str) -> tuple[str, ...]:
    return APR_MODELS[:2] if host == "apr" else tuple(name for name in MODELS if name not in _APART)


def _setting(host: str, model: str, turn: int) -> Setting:
    names = SETTINGS_OF[host]
    chosen = SETTINGS[names[turn % len(names)]]
    return chosen if not chosen.kind or chosen.kind in BLUEPRINTS[model].kinds else SETTINGS["f32"]


def _layer(geometry: Geometry, turn: int) -> int:
    return turn % min(geometry.layers, 3)


WIDE_FAULTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "formula": (
        "q4_k x q8 of 256",
        (
            "embedding-one-token", "attn-norm-one-channel", "ffn-norm-narrow", "final-norm-scaled",
            "q-head-scaled", "k-bias-missing", "rope-base-near", "k-stale", "scores-one-head", "heads-modulo",
            "mask-one-ahead", "softmax-temperature", "values-first-only", "attention-one-token",
            "o-one-channel", "residual-saturated", "gate-row-off", "hard-silu", "swiglu-one-token",
            "down-one-channel", "layer-one-channel", "head-soft-capped",
        ),
    ),
    "tensors": ("q4_k x q8 of 256", ("k-column-off", "v-block-scale", "q-bias-doubled", "attn-norm-scaled")),
    "conversion": ("q4_k x q8 of 256", ("q-row-off", "v-noisy", "biases-of-neighbour")),
    "torch": (
        "f32",
        (
            "attn-norm-scaled", "rope-narrow", "rope-backwards", "scores-scaled-twice", "mask-one-ahead",
            "attention-one-head", "o-one-channel", "k-bias-missing", "activation-skipped",
            "swiglu-one-token", "down-one-channel", "layer-one-channel",
        ),
    ),
    "apr": (
        "q4_k x q8 of 256",
        ("attn-norm-scaled", "k-bias-missing", "biases-of-neighbour", "rope-base-near", "final-norm-scaled"),
    ),
}  # fmt: skip
"""Host -> an arithmetic, and the faults that the wide model is given on it; ``apr``'s are in f32 tensors."""


def wide_singles(store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give single faults in the wide model: a sample of the catalogue, since each takes seconds."""
    material = Material(name=WIDE_MODEL, seed=0, kind="q4_k")
    geometry = store.geometry(material)
    for host in (name for name in WIDE_FAULTS if name in hosts):
        setting, names = WIDE_FAULTS[host]
        for turn, name in enumerate(names):
            seeded = Seeded(fault=fault_named(name), layer=_layer(geometry, turn), seed=turn)
            yield ExamCase(
                host=host,
                material=material,
                setting=SETTINGS[setting],
                tokens=hosts[host].fixed_tokens or tokens_of(turn % 2, 7, geometry.vocab),
                seeded=(seeded,),
            )


REPETITIVE = ("one token repeated", "runs of repeats")
"""Texts on which each fault is seeded once more, where many rows are equal and prove no more than one."""


def repetitive_singles(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give single faults on texts that repeat themselves, on texts taken in turn."""
    material, setting = Material(name="tiny-qwen2", seed=0), SETTINGS["f32"]
    if material.name not in plan.models:
        return
    geometry = store.geometry(material)
    # torch first: it shares no code with the replay.
    hosting = [name for name in ("torch", "formula", "tensors") if name in hosts]
    for turn, fault in enumerate(plan.faults):
        able = [name for name in hosting if hosts[name].can(fault, geometry, setting)]
        for at in range(turn, turn + plan.repetitive) if able else ():
            text = REPETITIVE[at % len(REPETITIVE)]
            yield ExamCase(
                host=able[0],
                material=material,
                setting=setting,
                tokens=TEXTS[text].ids(turn, 12, geometry.vocab, ()),
                seeded=(Seeded(fault=fault, layer=_layer(geometry, turn), seed=turn),),
                text=text,
            )


def smollm2_singles(store: Store, host: str = "formula") -> Iterator[ExamCase]:
    """Give up to 20 single faults in SmolLM2's first three layers."""
    geometry = store.model(Material(name=SMOLLM2, seed=0)).geometry
    fitting = [fault for fault in PLAIN if fault.formula and fault.fits(geometry) and _in_layers(fault)]
    for turn, fault in enumerate(fitting[:: max(1, len(fitting) // SMOLLM2_FAULTS)][:SMOLLM2_FAULTS]):
        yield ExamCase(
            host=host,
            material=Material(name=SMOLLM2, seed=0),
            setting=SMOLLM2_SETTING,
            tokens=tokens_of(turn, 7, geometry.vocab),
            seeded=(Seeded(fault=fault, layer=_layer(geometry, turn), seed=turn),),
        )


def _in_layers(fault: Fault) -> bool:
    return not {"final_norm", "lm_head"}.intersection(fault.stages)


def pairs(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give ``plan.pairs`` cases of two faults in different stages or layers, drawn at random."""
    rng = np.random.default_rng(20240607)
    names = [name for name in plan.models if name in BLUEPRINTS and name not in _APART]
    if not names:
        return
    able = [host for host in ("formula", "formula", "torch", "tensors") if host in hosts]
    given = 0
    while given < plan.pairs:
        host, name = able[int(rng.integers(len(able)))], names[int(rng.integers(len(names)))]
        seed, turn = int(rng.integers(plan.seeds)), int(rng.integers(1 << 16))
        setting = _setting(host, name, turn)
        material = Material(name=name, seed=seed, kind=setting.kind)
        geometry = store.model(material).geometry
        possible = [fault for fault in plan.faults if hosts[host].can(fault, geometry, setting)]
        seeded = tuple(
            Seeded(
                fault=possible[int(rng.integers(len(possible)))],
                layer=int(rng.integers(geometry.layers)),
                seed=int(rng.integers(1 << 16)),
            )
            for _ in range(2)
        )
        if hosts[host].runs(material, setting) and are_apart(seeded, geometry):
            given += 1
            tokens = tokens_of(turn % 3, 6 + turn % 4, geometry.vocab)  # few, whose oracles stay in memory
            yield ExamCase(host=host, material=material, setting=setting, tokens=tokens, seeded=seeded)


def are_apart(seeded: Sequence[Seeded], geometry: Geometry) -> bool:
    """Whether two faults have no stage in common."""
    first, second = (set(each.truth(geometry)) for each in seeded)
    return not first & second
