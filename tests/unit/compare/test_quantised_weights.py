"""A quantised checkpoint under a port: a right one is clean, a wrong one and a wrong reader are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.weights import weights_findings
from apr_falsify.formats.quantised.solved import solved
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import model_directory, whole
from tests.unit.quantised_files import PROJECTIONS, changed, decoded, quantise_checkpoint

pytestmark = pytest.mark.bare

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "head_dim": 16,
    "vocab_size": 40,
}
TOKENS = (3, 17, 9, 30, 1, 22, 8, 14, 27, 5)
STAGES = ("qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out")
"""What is multiplied with a quantised weight."""

Arrays = dict[str, npt.NDArray[Any]]


def traced(model: Model) -> Trace:
    """Run a model, all layers."""
    from apr_falsify.model.stages import STAGES as ALL

    return capture(model, Request(tokens=TOKENS, layers=range(2), stages=tuple(ALL)), MemorySink())


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("plain"), **WIDE)


@pytest.fixture(scope="module")
def oracle(plain_model: Path) -> Model:
    return open_model(plain_model)


@pytest.fixture(scope="module")
def oracle_trace(oracle: Model) -> Trace:
    return traced(oracle)


def with_weights(model: Model, values: Mapping[str, npt.NDArray[Any]]) -> Model:
    """Return the model with other values in some of its tensors."""
    made = {
        name: PlainTensor(name=name, type="f32", data=array.astype(np.float32))
        for name, array in values.items()
    }
    return replace(model, weights=replace(model.weights, tensors={**model.weights.tensors, **made}))


# --- right ones -------------------------------------------------------------------------------------

RIGHT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("gptq", {"group_size": 32}, {}),
    "act-order": ("gptq", {"group_size": 32, "desc_act": True}, {"act_order": True}),
    "8 bits": ("gptq", {"group_size": 32}, {"bits": 8}),
    "3 bits": ("gptq", {"group_size": 32}, {"bits": 3}),
    "awq": ("awq", {"group_size": 32}, {}),
}


@pytest.mark.parametrize("way", RIGHT)
def test_a_right_run_of_a_quantised_checkpoint_is_consistent(
    way: str, oracle: Model, oracle_trace: Trace, plain_model: Path, tmp_path: Path
) -> None:
    method, said, how = RIGHT[way]
    quantise_checkpoint(plain_model, tmp_path, method, said, **how)
    subject = open_model(tmp_path)
    found = bisect(oracle_trace, traced(subject), weights=oracle.weights, subject_weights=subject.weights)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


def test_channels_that_awq_rescaled_are_no_fault(oracle: Model, plain_model: Path, tmp_path: Path) -> None:
    """Norms are divided by what the matrices behind them are multiplied with, up's rows by down's columns."""
    held = load_file(plain_model / "model.safetensors")
    rescale(held)
    source = model_directory(tmp_path / "source", **WIDE)
    save_file(held, source / "model.safetensors")
    quantise_checkpoint(source, tmp_path / "awq", "awq", {"group_size": 32})
    subject = open_model(tmp_path / "awq").weights
    assert weights_findings(oracle.weights, subject, (0, 1)) == []
    # The same without the norms' share is another model.
    for name in [name for name in held if "layernorm" in name]:
        held[name] = load_file(plain_model / "model.safetensors")[name]
    save_file(held, source / "model.safetensors")
    quantise_checkpoint(source, tmp_path / "wrong", "awq", {"group_size": 32})
    wrong = weights_findings(oracle.weights, open_model(tmp_path / "wrong").weights, (0,))
    assert {stage for finding in wrong for stage in finding.stages} == {"qkv_matmul", "ffn_gate", "ffn_up"}


def rescale(held: Arrays) -> None:
    rng = np.random.default_rng(0)
    for layer in range(2):
        at = f"model.layers.{layer}."
        for norm, behind in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            factor = rng.uniform(0.3, 3, 64).astype(np.float32)
            held[f"{at}{norm}.weight"] /= factor
            for name in behind:
                held[f"{at}{name}.weight"] *= factor
        factor = rng.uniform(0.3, 3, 96).astype(np.float32)
        held[f"{at}mlp.up_proj.weight"] /= factor[:, None]
        held[f"{at}mlp.down_proj.weight"] *= factor


def test_a_wrong_norm_is_none_of_awqs(oracle: Model, plain_model: Path, tmp_path: Path) -> None:
    quantise_checkpoint(plain_model, tmp_path, "awq", {"group_size": 32})
    held = load_file(tmp_path / "model.safetensors")
    held["model.layers.1.input_layernorm.weight"] *= np.float32(1.01)
    save_file(held, tmp_path / "model.safetensors")
    found = weights_findings(oracle.weights, open_model(tmp_path).weights, (0, 1))
    assert [(finding.layer, finding.stages) for finding in found] == [(1, ("attn_norm",))]


# --- wrong files ------------------------------------------------------------------------------------


def by_part(part: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Callable[[Arrays], None]:
    def spoil(held: Arrays) -> None:
        for name in [name for name in held if name.endswith(f".{part}")]:
            held[name] = np.ascontiguousarray(change(held[name]))

    return spoil


def transposed(scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return scales.T.reshape(scales.shape)


def other_halves(packed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    octets = packed.view(np.uint8)
    return ((octets >> 4) | (octets << 4)).view(np.int32)


SPOILED: dict[str, tuple[str, dict[str, Any], Callable[[Arrays], None]]] = {
    "zero-point": ("gptq", {}, by_part("qzeros", lambda words: words + np.int32(0x11111111))),
    "reciprocal-scale": ("gptq", {}, by_part("scales", lambda scales: 1 / scales)),
    "group-order": ("gptq", {}, by_part("scales", lambda scales: np.roll(scales, 1, axis=0))),
    "act-order": ("gptq", {"act_order": True}, by_part("g_idx", np.sort)),
    "nibble-order": ("gptq", {}, by_part("qweight", other_halves)),
}


@pytest.mark.parametrize("cause", SPOILED)
def test_a_wrong_file_is_named_at_its_tensors(
    cause: str, oracle: Model, plain_model: Path, tmp_path: Path
) -> None:
    method, how, spoil = SPOILED[cause]
    quantise_checkpoint(plain_model, tmp_path, method, {"group_size": 32}, **how)
    held = load_file(tmp_path / "model.safetensors")
    spoil(held)
    save_file(held, tmp_path / "model.safetensors")
    found = weights_findings(oracle.weights, open_model(tmp_path).weights, (0, 1))
    assert {stage for finding in found for stage in finding.stages} == set(STAGES)
    assert {finding.layer for finding in found} == {0, 1}
    named = [finding for finding in found if finding.cause is not None and finding.cause[0] == cause]
    # Sorted groups are any others: of act-order no hypothesis brings back what the file has lost.
    assert named == ([] if cause == "act-order" else found)


def test_one_wrong_row_of_a_quantised_tensor_is_found(
    oracle: Model, plain_model: Path, tmp_path: Path
) -> None:
    quantise_checkpoint(plain_model, tmp_path, "gptq", {"group_size": 32})
    scales = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.gate_proj.scales"]
    scales[:, 11] *= 2
    changed(tmp_path, "model.layers.0.mlp.gate_proj.scales", scales)
    (found,) = weights_findings(oracle.weights, open_model(tmp_path).weights, (0, 1))
    assert (found.layer, found.stages, found.cause) == (0, ("ffn_gate",), None)
    assert "1 of 96 rows" in found.explanation


# --- wrong readers ----------------------------------------------------------------------------------


def read_wrongly(meant: Model, how: str) -> dict[str, npt.NDArray[Any]]:
    """Return the projections of a checkpoint as a reader has them that makes one mistake."""
    out: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in meant.weights.tensors.items():
        if name.split(".")[-2] not in PROJECTIONS:
            continue
        grid = tensor.read(0, tensor.shape[0])
        codes, groups = grid.codes.astype(np.int64), grid.groups
        zeros, scales = grid.zeros.astype(np.int64), grid.scales
        if how == "zero-point":
            zeros = zeros - 1
        elif how == "group-order":
            zeros, scales = np.roll(zeros, 1, axis=1), np.roll(scales, 1, axis=1)
        elif how == "act-order":
            groups = np.arange(len(groups)) // 32
        elif how == "nibble-order":
            codes = codes.reshape(len(codes), -1, 2)[..., ::-1].reshape(codes.shape)
        elif how == "reciprocal-scale":
            scales = 1 / scales
        out[name] = decoded(codes, zeros, scales, groups)
    return out


def judged(oracle: Model, ours: Trace, subject: Model, how: str, *, own: bool) -> Bisection:
    theirs = traced(with_weights(subject, read_wrongly(subject, how)))
    weights = subject.weights
    return bisect(
        traced(subject) if not own else ours,
        theirs,
        weights=weights if not own else oracle.weights,
        subject_weights=weights if own else None,
    )


@pytest.mark.parametrize("how", ["zero-point", "act-order", "nibble-order", "reciprocal-scale"])
def test_a_wrong_reader_is_named_in_every_product(
    how: str, oracle: Model, oracle_trace: Trace, plain_model: Path, tmp_path: Path
) -> None:
    quantise_checkpoint(plain_model, tmp_path, "gptq", {"group_size": 32, "desc_act": True}, act_order=True)
    subject = open_model(tmp_path)
    found = judged(oracle, oracle_trace, subject, how, own=True)
    assert {(one.layer, one.stages) for one in found.sources} == {(n, (s,)) for n in (0, 1) for s in STAGES}
    assert {one.type for one in found.sources} == {FindingType.SOURCE}
    assert {one.cause and one.cause[0] for one in found.sources} == {how}
    assert found.kind is Kind.LOCALISED


@pytest.mark.parametrize("how", ["zero-point", "group-order"])
def test_a_wrong_reader_is_named_where_only_dequantised_weights_are_known(
    how: str, plain_model: Path, tmp_path: Path
) -> None:
    """The oracle runs what the file means; no file says codes or scales."""
    meant = quantise_checkpoint(plain_model, tmp_path, "gptq", {"group_size": 32})
    packed = open_model(tmp_path)
    plain = with_weights(packed, {name: array for name, array in meant.items() if "proj" in name})
    theirs = traced(with_weights(packed, read_wrongly(packed, how)))
    found = bisect(traced(plain), theirs, weights=plain.weights)
    assert {(one.layer, one.stages) for one in found.sources} == {(n, (s,)) for n in (0, 1) for s in STAGES}
    assert {one.cause and one.cause[0] for one in found.sources} == {how}


def test_plain_weights_lie_on_no_grid(oracle: Model) -> None:
    name = family_of(oracle.geometry).weights["up"].format(n=0)
    tensor = oracle.weights.tensors[name]
    assert isinstance(tensor, PlainTensor)
    assert solved(tensor) is None
    assert solved(PlainTensor(name="x", type="f32", data=np.zeros((4, 64), np.float32))) is not None


def test_the_grid_of_a_dequantised_weight_is_solved_exactly(plain_model: Path, tmp_path: Path) -> None:
    meant = quantise_checkpoint(plain_model, tmp_path, "gptq", {"group_size": 32})
    name = "model.layers.1.self_attn.q_proj.weight"
    grid = solved(PlainTensor(name=name, type="f32", data=meant[name]))
    packed = open_model(tmp_path).weights.tensors[name]
    assert grid is not None
    np.testing.assert_allclose(whole(grid), meant[name], rtol=2e-7)
    theirs = packed.read(0, 64)
    found = grid.read(0, 64)
    np.testing.assert_allclose(found.scales, theirs.scales, rtol=1e-6)
    np.testing.assert_array_equal(found.codes, theirs.codes)
