"""Every family through every fault, every stage of every family spoiled: located, and nothing breaks down.

A sample drawn by fixed rules runs here; ``APR_FALSIFY_EVERY=1`` runs all of it, some ten minutes:
``APR_FALSIFY_EVERY=1 PYTEST_ARGS=tests/unit/compare/test_every_family.py make test``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from apr_falsify.commands.hosts import FormulaHost, TensorHost
from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.judge import store_of
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.replay import Replayer
from apr_falsify.errors import ModelError
from apr_falsify.exam.cases import ExamCase, ExamRun, Host, Seeded
from apr_falsify.exam.fault import Fault, Spread
from apr_falsify.exam.faults import PLAIN
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.store import Store
from apr_falsify.exam.trial import COUNTS_FROM, level_of
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.model.wiring import stages_of
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import RECIPES, make_checkpoint
from tests.sampling import EVERY, one_in
from tests.unit.compare.spoiled import SPOILS, request_of, spoiled_run

pytestmark = pytest.mark.bare

T = TypeVar("T")

LAYERS = 3
HOSTS: Mapping[str, Host] = {
    "formula": FormulaHost(),
    "tensors": TensorHost(readable=False),
    "conversion": TensorHost(readable=True),
}

NEEDED_WHOLE = ("qkv_bias", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention")
"""Stages whose rows, or whose readers' rows, take more than one token."""


SHARE = 60
"""One in so many is run, in each recipe others."""


def sampled(recipe: str, cases: Iterable[T]) -> Iterator[T]:
    yield from one_in(SHARE, cases, start=list(RECIPES).index(recipe))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A checkpoint of one recipe and the runs that all its faults are compared with."""

    path: Path
    model: Model
    oracle: Trace

    def ran(self, host: str, seeded: Seeded) -> ExamRun:
        case = ExamCase(
            host=host,
            material=Material(name="model", seed=0),
            setting=SETTINGS["f32"],
            tokens=self.oracle.tokens,
            seeded=(seeded,),
        )
        store = Store(self.path, self.path, {"model": self.path})
        with np.errstate(all="ignore"):
            return HOSTS[host].run(store, case, request_of(self.model), MemorySink())


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bench]:
    class Made(dict[str, Bench]):
        def __missing__(self, recipe: str) -> Bench:
            path = make_checkpoint(tmp_path_factory.mktemp(recipe) / "model", recipe, layers=LAYERS)
            model = open_model(path)
            oracle = spoiled_run(model, request_of(model), {}, "f64")
            self[recipe] = Bench(path=path, model=model, oracle=oracle)
            return self[recipe]

    return Made()


def found_in(result: Bisection) -> set[Key]:
    return {(finding.layer, stage) for finding in result.sources for stage in finding.stages}


def seeded_in(model: Model) -> Iterator[tuple[str, Seeded]]:
    """Give every fault that the model can have, on every host, each in another layer that has its stages."""
    for at, fault in enumerate(PLAIN):
        layers = [layer for layer in range(LAYERS) if _in_layer(fault, model, layer)]
        for turn, (name, host) in enumerate(HOSTS.items()):
            if layers and host.can(fault, model.geometry, SETTINGS["f32"]):
                yield name, Seeded(fault=fault, layer=layers[(at + turn) % len(layers)], seed=at + turn)


def _in_layer(fault: Fault, model: Model, layer: int) -> bool:
    """Whether a layer has the stages of a fault that sits in one; a mixture of experts lacks some."""
    own = set(fault.stages) & set(stages_of(model.geometry))
    return fault.spread is not Spread.ONE or own <= set(stages_of(model.geometry, layer))


@pytest.mark.parametrize("recipe", one_in(2, RECIPES))
def test_every_fault_is_located_and_nothing_breaks_down(recipe: str, benches: Mapping[str, Bench]) -> None:
    bench = benches[recipe]
    seen = 0
    for host, seeded in sampled(recipe, seeded_in(bench.model)):
        try:
            ran = bench.ran(host, seeded)
        except ModelError:  # the tensor, or that of the neighbour, lies in the experts, or in no attention
            assert any(bench.model.geometry.mixtures) or not all(bench.model.geometry.attends)
            continue
        seen += 1
        result = bisect(bench.oracle, ran.trace, weights=bench.model.weights, subject_weights=ran.own_weights)
        place = f"{seeded.fault.name} of layer {seeded.layer} on {host}"
        assert result.breakdowns == (), place
        truth, found = set(seeded.truth(bench.model.geometry)), found_in(result)
        assert found <= truth, place
        assert required(bench, ran) <= found, place
    assert seen > (5 if EVERY else 0)


def required(bench: Bench, ran: ExamRun) -> set[Key]:
    """Return the stages that the fault changes by enough to be named, as the exam counts it."""
    assert ran.changes is not None
    replayer = Replayer(ran.trace, bench.model.weights, store_of(ran.trace))
    return {key for key, change in ran.changes.items() if level_of(change, replayer, key) >= COUNTS_FROM}


def spoiled_in(bench: Bench) -> Iterator[tuple[Key, str]]:
    """Give the stages of one layer, a mixture where there is one, and of the whole model, with each spoil."""
    mixed = [layer for layer in range(LAYERS) if bench.model.geometry.is_mixture(layer)]
    for key in bench.oracle.stages:
        if key[0] in (None, (mixed or [1])[0]) or key[1] == "embedding":
            alone = bench.oracle.stages[key].data.size == 1  # the weight of a single expert
            names = ("a factor", "zeros", "noise", "NaN") if alone else SPOILS
            yield from ((key, name) for name in names if not is_relisted(key, name))


def is_relisted(key: Key, name: str) -> bool:
    """Whether a spoil lists the same experts in another order, which no runtime has to keep."""
    return key.stage == "moe_router_indices" and name.startswith("tokens")


@pytest.mark.parametrize("recipe", one_in(2, RECIPES, start=1))
def test_every_stage_is_located_however_it_is_spoiled(recipe: str, benches: Mapping[str, Bench]) -> None:
    bench = benches[recipe]
    request = request_of(bench.model)
    sound = spoiled_run(bench.model, request, {})
    seen = 0
    for key, name in sampled(recipe, spoiled_in(bench)):
        subject = spoiled_run(bench.model, request, {key: SPOILS[name]})
        if np.array_equal(subject.stages[key].data, sound.stages[key].data, equal_nan=True):
            continue
        seen += 1
        layers = None if key[0] is None else [key[0]]
        result = bisect(bench.oracle, subject, weights=bench.model.weights, layers=layers)
        assert result.breakdowns == (), (key, name)
        assert found_in(result) == {key}, (key, name)
    assert seen


def _last_alone(trace: Trace) -> Trace:
    return with_stages(
        trace,
        lambda key, array: (
            StageArray(data=array.data[-1:], layout=(Layout.LAST_TOKEN,))
            if STAGES[key[1]].axes[0] == "tokens" and key[1] not in NEEDED_WHOLE
            else array
        ),
    )


def _every_third_missing(trace: Trace) -> Trace:
    kept = {key: array for at, (key, array) in enumerate(trace.stages.items()) if at % 3}
    return replace(trace, stages=kept)


def _zeroed(trace: Trace) -> Trace:
    return with_stages(
        trace,
        lambda key, array: (
            StageArray(data=np.tril(array.data), layout=(Layout.CAUSAL_ZEROED,))
            if key[1] == "attn_scores"
            else array
        ),
    )


def with_stages(trace: Trace, change: Callable[[Key, StageArray], StageArray]) -> Trace:
    return replace(trace, stages={key: change(key, array) for key, array in trace.stages.items()})


KEPT: Mapping[str, Callable[[Trace], Trace]] = {
    "all": lambda trace: trace,
    "the last token alone": _last_alone,
    "two stages of three": _every_third_missing,
    "scores that are zero above the diagonal": _zeroed,
}
RUNS: Sequence[tuple[int, str, str, bool]] = (
    (1, "f32", "all", True),
    (2, "f16", "all", True),
    (17, "bf16", "all", True),
    (17, "f32", "all", False),
    (5, "f32", "the last token alone", True),
    (5, "f16", "two stages of three", True),
    (5, "f32", "scores that are zero above the diagonal", True),
    (5, "f32", "two stages of three", False),
)
"""Tokens, number format, what was captured, and whether there are weights to replay with."""


@pytest.mark.parametrize("recipe", one_in(4, RECIPES))
def test_nothing_breaks_down_whatever_was_captured(recipe: str, benches: Mapping[str, Bench]) -> None:
    model = benches[recipe].model
    spoils = list(itertools.product(benches[recipe].oracle.stages, SPOILS))
    turn = list(RECIPES).index(recipe)
    for at, (tokens, dtype, kept, with_weights) in enumerate(RUNS * (8 if EVERY else 1)):
        request = request_of(model, tokens)
        key, name = spoils[(turn + 7919 * at) % len(spoils)]
        if tokens == 1 and name in ("a head", "a channel", "a NaN", "an infinity"):
            continue  # of a single key
        oracle = spoiled_run(model, request, {}, "f64")
        subject = KEPT[kept](spoiled_run(model, request, {key: SPOILS[name]}, dtype))
        layers = None if key[0] is None else [key[0]]
        weights = model.weights if with_weights else None
        result = bisect(oracle, subject, weights=weights, layers=layers)
        assert result.breakdowns == (), (key, name, tokens, dtype, kept)
