"""Arrays of tensor-parallel ranks: cut by transformers' own numbers here, put together by the mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.errors import AprFalsifyError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.unit.oracle.conftest import OpenCheckpoint, checkpoint
from tests.unit.subjects.dumps import write
from tests.unit.subjects.pass_dumps import Arrays, end_to_end, hf_run, judged, mapping_of

__all__ = ["checkpoint"]

RANKS = 2
BY_CHANNEL = ("q_post_rope", "k_post_rope", "attention", "ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")
BY_HEAD = ("attn_scores", "attn_softmax")
SUMMED = ("attn_out", "ffn_out")


@pytest.fixture(scope="module")
def model(checkpoint: OpenCheckpoint) -> Model:
    return checkpoint("llama-biased-tied-llama3")


@pytest.fixture(scope="module")
def whole(model: Model) -> Trace:
    return hf_run(model, Passes.whole(9))


def cut(model: Model, trace: Trace, *, biased_ranks: int = 1) -> tuple[Arrays, dict[str, Any]]:
    """Return what two ranks would have saved, and its mapping; partial sums are products of halves."""
    arrays, said = end_to_end(trace), mapping_of(trace, ranks=RANKS)
    held: Arrays = {}
    dims = model.geometry.dims(1)
    for name, values in arrays.items():
        stage = name.rpartition(".")[2]
        for rank, part in enumerate(_parts(model, name, stage, values, arrays, biased_ranks)):
            held[f"r{rank}/{name}"] = part
        if f"r0/{name}" not in held:
            held[name] = values
    for stage in (*BY_CHANNEL, *BY_HEAD, *SUMMED):
        said["stages"][stage]["from"] = "r{rank}/L{layer}." + stage
    for stage in SUMMED:
        said["stages"][stage]["shards"] = "sum"
    for stage in BY_HEAD:
        said["stages"][stage]["shards"] = "heads"
    for stage in ("qkv_matmul", "qkv_bias"):
        if stage in said["stages"]:
            ends = np.cumsum([dims["q"], dims["kv"], dims["kv"]])
            for layer in range(model.geometry.layers):
                whole_one = held.pop(f"L{layer}.{stage}")
                for part, values in zip("qkv", np.split(whole_one, ends[:-1], axis=-1), strict=True):
                    for rank, half in enumerate(np.split(values, RANKS, axis=-1)):
                        held[f"r{rank}/L{layer}.{stage}.{part}"] = half
            said["stages"][stage]["from"] = [f"r{{rank}}/L{{layer}}.{stage}.{part}" for part in "qkv"]
    return held, said


def _parts(
    model: Model, name: str, stage: str, values: npt.NDArray[Any], arrays: Arrays, biased_ranks: int
) -> list[npt.NDArray[Any]]:
    if stage in BY_CHANNEL:
        return np.split(values, RANKS, axis=-1)
    if stage in BY_HEAD:
        return np.split(values, RANKS, axis=0)
    if stage not in SUMMED:
        return []
    role, source = ("o", "attention") if stage == "attn_out" else ("down", "ffn_swigl")
    layer = int(name[1 : name.index(".")])
    tensor = model.weights.tensor(role, layer)
    weight = tensor.rows(0, tensor.shape[0]).astype(np.float64)
    x = arrays[f"L{layer}.{source}"].astype(np.float64)
    sums = [a @ w.T for a, w in zip(np.split(x, RANKS, 1), np.split(weight, RANKS, 1), strict=True)]
    bias = model.weights.vector(f"{role}_bias", layer).astype(np.float64)
    others = [part + bias * (rank < biased_ranks) for rank, part in enumerate(sums) if rank]
    # What the run went on with is the very sum, to the last bit.
    return [values - sum(sums[1:], np.zeros_like(x[:, :1])), *others]


def result(folder: Path, model: Model, trace: Trace, **how: Any) -> Bisection:
    arrays, said = cut(model, trace, **how)
    return judged(folder, model, arrays, said, trace)


def test_what_two_ranks_saved_is_one_run(model: Model, whole: Trace, tmp_path: Path) -> None:
    found = result(tmp_path, model, whole)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    assert found.subject.unused == ()


def test_a_bias_that_each_rank_adds_is_named(model: Model, whole: Trace, tmp_path: Path) -> None:
    found = result(tmp_path, model, whole, biased_ranks=RANKS)
    causes = {(source.stages[-1], source.cause and source.cause[0]) for source in found.sources}
    assert {cause for cause in causes if cause[0] in SUMMED} == {(stage, "doubled-bias") for stage in SUMMED}
    # The stream is the sound run's here, which had each bias once.
    assert {stage for stage, _ in causes} == {*SUMMED, "post_attn_residual", "post_ffn_residual"}


def test_ranks_that_do_not_fit_are_refused(model: Model, whole: Trace, tmp_path: Path) -> None:
    arrays, said = cut(model, whole)

    def refusal(name: str, held: Arrays, mapping: dict[str, Any]) -> str:
        with pytest.raises(AprFalsifyError) as refused:
            open_recorded(Target(path=write(tmp_path / name, held, mapping), model=model))
        return str(refused.value)

    without = {key: value for key, value in said.items() if key != "ranks"}
    assert "ranks: N" in refusal("unsaid", arrays, without)
    assert "ranks is 0" in refusal("none", arrays, {**said, "ranks": 0})
    assert "r2/" in refusal("too-many", arrays, {**said, "ranks": 3})
    cropped = {**arrays, "r1/L0.ffn_up": arrays["r1/L0.ffn_up"][:-1]}
    assert "do not fit together" in refusal("cropped", cropped, said)
    stages = {**said["stages"], "ffn_up": {"from": "r{rank}/L{layer}.ffn_up", "shards": "token"}}
    assert "did you mean" in refusal("axis", arrays, {**said, "stages": stages})
    stages = {**said["stages"], "ffn_up": {"from": "r0/L{layer}.ffn_up", "shards": "sum"}}
    assert "not every name has {rank}" in refusal("no-rank", arrays, {**said, "stages": stages})
