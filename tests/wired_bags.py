"""Recordings that nobody has named: cryptic names, odd orders, ports that are right or wrong.

A case is a family, at most one fault of the exam's catalogue, and a seed that says how the port saves what
it computes: split or fused, transposed, by head, its kv heads repeated, masked, before the scale, with copies
and by-products between, and some stages not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.faults import CATALOGUE, Fault
from apr_falsify.exam.seeding.scene import Scene
from apr_falsify.formats.weights import Model
from apr_falsify.matching.result import Wiring
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.operators.heads import parts
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
Place = tuple[Key, str]

TOKENS = (5, 71, 33, 18, 90, 7, 7, 29, 64, 50, 41)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One recording.

    Attributes:
        recipe: the family's checkpoint, a name in ``tests.checkpoints.RECIPES``.
        fault: what the port gets wrong, a name in the exam's catalogue; empty for a right port.
        layer: where.
        seed: how it saves its arrays.

    """

    recipe: str
    fault: str = ""
    layer: int = 0
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.recipe}-{self.fault or 'right'}@{self.layer}-{self.seed}"


@dataclass(slots=True)
class Bag:
    """The arrays of one case, and what each is.

    Attributes:
        arrays: name -> values.
        holds: name -> the places that the array holds.
        values: place -> what the port has there.
        wrong: the places that the fault makes wrong, and that were saved.

    """

    arrays: Arrays = field(default_factory=dict)
    holds: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    values: dict[Place, F32] = field(default_factory=dict)
    wrong: set[Key] = field(default_factory=set)


def faults_of(geometry: Geometry) -> list[Fault]:
    """Return the faults that a model can have and that the embedded runtime can seed."""
    return [fault for fault in CATALOGUE if fault.formula is not None and fault.fits(geometry)]


def ported(model: Model, case: Case) -> tuple[Trace, dict[Key, float]]:
    """Run the port; return its stages, and by how much the fault changes which."""
    fault = next((one for one in CATALOGUE if one.name == case.fault), None)
    wrong = set() if fault is None else set(fault.truth(model.geometry, case.layer))
    changes: dict[Key, float] = {}

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        right = as_defined(key, inputs, site)
        if key not in wrong or fault is None or fault.formula is None:
            return right
        found = fault.formula(Scene(name=key.stage, inputs=inputs, site=site, seed=case.seed))
        made = np.asarray(site.arithmetic.store.round(np.asarray(found, dtype=right.dtype)))
        changes[key] = float(np.linalg.norm(made - right) / (np.linalg.norm(right) or 1))
        return made

    request = Request(tokens=TOKENS, layers=range(model.geometry.layers), stages=tuple(STAGES))
    return capture(model, request, MemorySink(), step=step), changes


def bag_of(model: Model, case: Case) -> Bag:
    """Return the arrays that the port of a case saves."""
    trace, changes = ported(model, case)
    saver = _Saver(model.geometry, np.random.default_rng(case.seed))
    bag = Bag(wrong={key for key, change in changes.items() if change > 1e-4})
    saved = saver.saved(trace, {key.stage for key in bag.wrong})
    numbers = saver.chance.permutation(10 * len(saved))
    for number, (places, values) in zip(numbers, saved, strict=False):
        name = f"t{number}"
        bag.arrays[name] = values
        bag.holds[name] = places
    for key, array in trace.stages.items():
        columns = parts(model.geometry) if key.stage in ("qkv_matmul", "qkv_bias") else {"": slice(None)}
        for part, own in columns.items():
            values = np.asarray(array.data, dtype=np.float32)
            bag.values[key, part] = values[:, own] if part else values
    held = {key for places in bag.holds.values() for key, _ in places}
    bag.wrong &= held
    bag.arrays["ids"] = np.array(TOKENS, np.int64)
    return bag


class _Saver:
    """Saves the stages of a port in ways of its own, the same in each layer."""

    def __init__(self, geometry: Geometry, chance: np.random.Generator) -> None:
        self.geometry, self.chance = geometry, chance

    def saved(self, trace: Trace, kept: set[str]) -> list[tuple[tuple[Place, ...], npt.NDArray[Any]]]:
        """Return the arrays in an order of their own, each with the places that it holds."""
        names = dict.fromkeys(name for _, name in trace.stages)
        left_out = {name for name in names if self.chance.random() < 0.15} - kept
        ways = {name: self.chance.random(6) for name in names}
        fused = self.chance.random() < 0.3
        found: list[tuple[tuple[Place, ...], npt.NDArray[Any]]] = []
        for key, array in trace.stages.items():
            values = np.asarray(array.data, dtype=np.float32)
            if key.stage in left_out or key.stage == "moe_ffn_out":
                continue
            if fused and key.stage in ("ffn_gate", "ffn_up") and {"ffn_gate", "ffn_up"} <= names.keys():
                if key.stage == "ffn_up" and "ffn_gate" not in left_out:
                    gate = np.asarray(trace.stages[Key(key.layer, "ffn_gate")].data, dtype=np.float32)
                    both = ((Key(key.layer, "ffn_gate"), ""), (key, ""))
                    found.append((both, self._fused(gate, values, ways["ffn_gate"])))
                continue
            found += self._stage(key, values, ways[key.stage])
        found += self._by_products(trace)
        order = self.chance.permutation(len(found))
        return [found[index] for index in order]

    def _fused(self, gate: F32, up: F32, way: npt.NDArray[np.float64]) -> F32:
        if way[0] < 0.5:
            return np.concatenate([gate, up], axis=1)
        return np.stack([gate, up], axis=2).reshape(len(gate), -1)

    def _stage(
        self, key: Key, values: F32, way: npt.NDArray[np.float64]
    ) -> Iterator[tuple[tuple[Place, ...], F32]]:
        if key.stage in ("qkv_matmul", "qkv_bias"):
            yield from self._joined(key, values, way)
        elif key.stage in ("attn_scores", "attn_scores_uncapped", "attn_softmax"):
            yield ((key, ""),), self._square(key, values, way)
        elif key.stage in ("q_post_rope", "q_norm", "attention", "k_post_rope", "k_norm"):
            yield ((key, ""),), self._heads(values, way, repeat=key.stage[0] == "k" and way[4] < 0.3)
        else:
            turned = values.T if way[0] < 0.2 and values.ndim == 2 else values
            yield ((key, ""),), turned[None] if way[1] < 0.4 else turned

    def _joined(
        self, key: Key, values: F32, way: npt.NDArray[np.float64]
    ) -> Iterator[tuple[tuple[Place, ...], F32]]:
        columns = parts(self.geometry)
        each = {part: values[:, columns[part]] for part in "qkv"}
        every = tuple((key, part) for part in "qkv")
        if way[0] < 0.2:
            yield every, values
        elif way[0] < 0.35:
            yield every, self._by_kv_head(each)
        else:
            for part, own in each.items():
                repeat = part == "v" and way[4] < 0.2
                yield ((key, part),), self._heads(own, way, repeat=repeat)

    def _by_kv_head(self, each: dict[str, F32]) -> F32:
        """Lay q, k and v side by side for each kv head."""
        kv, dim = self.geometry.kv_heads, self.geometry.head_dim
        split = [own.reshape(len(own), kv, -1, dim) for own in each.values()]
        return np.concatenate(split, axis=2).reshape(len(split[0]), -1)

    def _heads(self, values: F32, way: npt.NDArray[np.float64], *, repeat: bool) -> F32:
        heads = values.reshape(len(values), -1, self.geometry.head_dim)
        if repeat:
            heads = np.repeat(heads, self.geometry.heads // self.geometry.kv_heads, axis=1)
        if way[0] < 0.6:
            found = heads.reshape(len(heads), -1)
            found = found.T if way[1] < 0.15 else found
        else:
            found = heads.swapaxes(0, 1) if way[1] < 0.6 else heads
        return np.ascontiguousarray(found[None] if way[2] < 0.4 else found)

    def _square(self, key: Key, values: F32, way: npt.NDArray[np.float64]) -> F32:
        found = values
        if key.stage == "attn_scores" and way[3] < 0.25:
            found = np.where(np.tri(len(TOKENS), dtype=bool), found, np.float32(-3.4e38))
        if key.stage == "attn_scores" and 0.25 <= way[3] < 0.4 and self.geometry.attn_softcap is None:
            found = found / np.float32(self.geometry.attn_scale_at(key.layer))
        if way[1] < 0.15:
            found = found.swapaxes(1, 2)
        return np.ascontiguousarray(found[None] if way[2] < 0.4 else found)

    def _by_products(self, trace: Trace) -> Iterator[tuple[tuple[Place, ...], npt.NDArray[Any]]]:
        """Yield what is no stage: copies, streams without their size, tables, masks."""
        for key, array in trace.stages.items():
            values = np.asarray(array.data, dtype=np.float32)
            if key.stage == "post_attn_residual" and self.chance.random() < 0.4:
                yield (), values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True))
            if self.chance.random() < 0.08 and key.stage not in ("qkv_matmul", "qkv_bias", "moe_ffn_out"):
                yield ((key, ""),), np.array(values)
        size = len(TOKENS)
        angle = np.outer(np.arange(size), 1e4 ** (-np.arange(self.geometry.head_dim // 2) / 16))
        yield (), np.cos(angle).astype(np.float32)
        yield (), np.triu(np.full((size, size), -3.4e38, np.float32), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of one case.

    Attributes:
        wrong: places that another array was taken for.
        found: the wrong stages of the port that were found, in all their parts.
        missed: those that were not.
        open: how many places were left open.

    """

    wrong: tuple[str, ...]
    found: frozenset[Key]
    missed: frozenset[Key]
    open: int


def score(bag: Bag, wiring: Wiring, geometry: Geometry) -> Score:
    """Compare a wiring with the truth; an array of the same values is as good."""
    wrong, got = [], set()
    for stage in wiring.stages:
        for layer, names in stage.names.items():
            key = Key(layer, "ffn_out" if stage.stage == "moe_ffn_out" else stage.stage)
            for index, name in enumerate(names):
                asked = [(key, "qkv"[index] if len(names) > 1 else "")]
                if len(names) == 1 and key.stage in ("qkv_matmul", "qkv_bias"):
                    asked = [(key, part) for part in "qkv"]
                got |= set(asked)
                if not set(asked) & set(bag.holds[name]) and not _equal_to_one(bag, name, asked):
                    wrong.append(f"{key} {asked[0][1]}: {name} is {bag.holds[name]}")
    found = frozenset(key for key in bag.wrong if (key, "") in got or (key, "q") in got)
    return Score(wrong=tuple(wrong), found=found, missed=frozenset(bag.wrong - found), open=len(wiring.open))


def _equal_to_one(bag: Bag, name: str, places: list[Place]) -> bool:
    """Whether an array has the values that the port has at all of ``places``, in any order."""
    known = [bag.values[place] for place in bag.holds[name]] or [bag.arrays[name]]
    return all(
        any(np.allclose(_invariants(own), _invariants(bag.values[place]), rtol=3e-5) for own in known)
        for place in places
    )


def _invariants(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """Return what the order of values, and copies of all of them, do not change."""
    flat = np.where(np.isfinite(values) & (values > -1e30), values, 0).astype(np.float64).reshape(-1)
    count = max(np.count_nonzero(flat), 1)
    return tuple(
        float(x)
        for x in (np.abs(flat).max(), math.sqrt(np.sum(flat**2) / count), np.sum(np.abs(flat)) / count)
    )


def cases(count: int, recipes: list[str], models: Any) -> Iterator[Case]:
    """Yield ``count`` cases: each family in turn, every second one right."""
    for number in range(count):
        recipe = recipes[number % len(recipes)]
        chance = np.random.default_rng(1000 + number)
        faults = faults_of(models(recipe).geometry) if number % 3 else []
        fault = faults[int(chance.integers(len(faults)))].name if faults else ""
        yield Case(
            recipe=recipe,
            fault=fault,
            layer=int(chance.integers(models(recipe).geometry.layers)),
            seed=number,
        )


def save(folder: Path, bag: Bag) -> Path:
    """Write the recording."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "bag.npz", **bag.arrays)
    return folder / "bag.npz"
