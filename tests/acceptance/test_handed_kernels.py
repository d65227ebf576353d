"""Recordings of public runtimes and of ports: fused attention, 8-bit caches, products in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.programs import Outcome, run
from tests.support import REAL_VARIABLE, real_folder

FUSED = ("attn_scores", "attn_softmax", "attention")
QWEN2 = "runtimes/models/qwen2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A recording and what is to be said of it.

    Attributes:
        model: the oracle's model.
        recording: the recording.
        kind: the headline.
        sources: layer and stages of each source.
        says: words of its findings, all of them.
        stated: the arithmetic by which nothing is left to tell, ``""`` where there is none.

    """

    model: str
    recording: str
    kind: str = "consistent"
    sources: tuple[tuple[int, tuple[str, ...]], ...] = ()
    says: tuple[str, ...] = ()
    stated: str = ""


HANDED: Mapping[str, Handed] = {
    "sdpa": Handed(model=QWEN2, recording="runtimes/transformers-fused-none/t.npz"),
    "sdpa, scale": Handed(
        model=QWEN2,
        recording="runtimes/transformers-fused-scale/t.npz",
        kind="localised",
        sources=((1, FUSED),),
        says=("scores x 1.1 before the softmax fits",),
    ),
    "sdpa, window": Handed(
        model=QWEN2,
        recording="runtimes/transformers-fused-window/t.npz",
        kind="localised",
        sources=((1, FUSED),),
        says=("a window of 5 fits",),
    ),
    "int8 cache": Handed(
        model="field/kv-int8/model",
        recording="field/kv-int8/int8-cache-token.npz",
        says=tuple(f"int8 {each} cache, a scale per token and head fits" for each in "kv"),
        stated="int8 cache, a scale per token and head",
    ),
    "plain cache": Handed(model="field/kv-int8/model", recording="field/kv-int8/good.npz"),
    "dynamic int8": Handed(
        model="runtimes/quant-dyn8/dequantised",
        recording="runtimes/quant-dyn8/t.npz",
        says=("7-bit activations, a scale and a zero point per tensor fits",),
        stated="7-bit activations, a scale and a zero point per tensor",
    ),
    "bf16 weights": Handed(
        model=QWEN2,
        recording="runtimes/transformers-bf16ofF32-qwen2/t.npz",
        says=("the weights are rounded to bf16",),
    ),
}


def bisected(real: Path, case: Handed, out: Path, *more: str) -> Outcome:
    where = ("--oracle", real / case.model, "--subject", f"recorded:{real / case.recording}")
    return run("bisect", *where, "--out", out, "--format", "json", *more)


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
@pytest.mark.parametrize("name", HANDED)
def test_a_handed_run_is_told_for_what_it_is(name: str, tmp_path: Path) -> None:
    real, case = real_folder(), HANDED[name]
    assert real is not None
    found = bisected(real, case, tmp_path / "run")
    assert found.json["kind"] == case.kind
    assert [(one["layer"], tuple(one["stages"])) for one in found.json["sources"]] == list(case.sources)
    told = [one["explanation"] for one in found.json["findings"]]
    assert all(any(words in sentence for sentence in told) for words in case.says)
    assert bool(told) is bool(case.says)
    if case.stated:
        assert found.code == 1
        stated = bisected(real, case, tmp_path / "stated", "--arithmetic", case.stated)
        assert (stated.json["kind"], stated.json["findings"], stated.code) == ("consistent", [], 0)
