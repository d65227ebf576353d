"""One kernel's exported files are enough to compute its stage: by torch here, and by their own formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from apr_falsify.commands.kernel_files import write_kernel
from apr_falsify.compare.kernel_case import kernel_case, parse_place
from apr_falsify.errors import AprFalsifyError, ModelError, OutputError, StageError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import APR_STAGES, STAGES, Key, Layout, Scope
from apr_falsify.model.wiring import stages_of
from apr_falsify.oracle.capture import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import RECIPES, make_checkpoint
from tests.sampling import one_in
from tests.unit.helpers import TINY

pytestmark = pytest.mark.bare

Array = npt.NDArray[Any]
TOKENS = (274, 272, 332, 13, 20, 33)
STAGES_OF_TINY = [name for name in APR_STAGES if not name.startswith("moe_")]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(TINY)


@pytest.fixture(scope="module")
def trace(model: Model) -> Trace:
    request = Request(tokens=TOKENS, layers=range(3), stages=tuple(STAGES))
    return capture(model, request, MemorySink())


class Files:
    """What a porter has: the exported folder, read with json and numpy alone."""

    def __init__(self, folder: Path) -> None:
        self.said: dict[str, Any] = json.loads((folder / "kernel.json").read_text())
        self.constants: dict[str, Any] = self.said["constants"]
        self.arrays: dict[str, Array] = {}
        for entry in self.said["files"]:
            values = np.load(folder / entry["file"], allow_pickle=False)
            assert list(values.shape) == entry["shape"]
            assert f"f{8 * values.dtype.itemsize}" == entry["dtype"]
            self.arrays[entry["name"]] = values
        listed = {entry["file"] for entry in self.said["files"]} | {"kernel.json"}
        assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def __getattr__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name].astype(np.float64))


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, eps=1e-6)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding by complex numbers, base 1,000,000: [S, heads * 32]."""
    heads = x.reshape(len(x), -1, 2, 16)
    angle = torch.outer(torch.arange(len(x)).double(), 1e6 ** (-torch.arange(16).double() / 16))
    spun = torch.complex(heads[:, :, 0], heads[:, :, 1]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.stack([spun.real, spun.imag], dim=2).reshape(len(x), -1)


def shared(x: torch.Tensor) -> torch.Tensor:
    """[S, 2 * 32] -> [8, S, 32]: query heads 0 to 3 read kv head 0."""
    return torch.stack([x[:, 32 * (head // 4) : 32 * (head // 4) + 32] for head in range(8)])


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    heads = torch.stack(q.split(32, dim=1))
    return torch.einsum("hsd,htd->hst", heads, shared(k)) / math.sqrt(32)


def softmax(x: torch.Tensor) -> torch.Tensor:
    future = torch.ones_like(x, dtype=torch.bool).triu(1)
    return functional.softmax(x.masked_fill(future, -torch.inf), dim=-1)


def mixed(weights: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(torch.bmm(weights, shared(qkv[:, 320:]))), dim=1)


def joined(f: Files) -> torch.Tensor:
    products = [functional.linear(f.attn_norm, w) for w in (f.q_weight, f.k_weight, f.v_weight)]
    return torch.cat(products, dim=1)


BY_TORCH: Mapping[str, Callable[[Files], torch.Tensor]] = {
    "embedding": lambda f: f.embed_rows,
    "attn_norm": lambda f: rms(f.layer_input, f.attn_norm_weight),
    "qkv_matmul": joined,
    "qkv_bias": lambda f: f.qkv_matmul + torch.cat([f.q_bias, f.k_bias, f.v_bias]),
    "q_post_rope": lambda f: turned(f.qkv_bias[:, :256]),
    "k_post_rope": lambda f: turned(f.qkv_bias[:, 256:320]),
    "attn_scores": lambda f: scores(f.q_post_rope, f.k_post_rope),
    "attn_softmax": lambda f: softmax(f.attn_scores),
    "attention": lambda f: mixed(f.attn_softmax, f.qkv_bias),
    "attn_out": lambda f: functional.linear(f.attention, f.o_weight),
    "post_attn_residual": lambda f: f.layer_input + f.attn_out,
    "ffn_norm": lambda f: rms(f.post_attn_residual, f.ffn_norm_weight),
    "ffn_gate": lambda f: functional.linear(f.ffn_norm, f.gate_weight),
    "ffn_up": lambda f: functional.linear(f.ffn_norm, f.up_weight),
    "ffn_silu": lambda f: functional.silu(f.ffn_gate),
    "ffn_swigl": lambda f: f.ffn_silu * f.ffn_up,
    "ffn_out": lambda f: functional.linear(f.ffn_swigl, f.down_weight),
    "post_ffn_residual": lambda f: f.post_attn_residual + f.ffn_out,
    "final_norm": lambda f: rms(f.post_ffn_residual, f.final_norm_weight),
    "lm_head": lambda f: functional.linear(f.final_norm[-1], f.lm_head_weight),
}


def exported(trace: Trace, model: Model | None, key: Key, folder: Path) -> Files:
    write_kernel(kernel_case(trace, None if model is None else model.weights, key), trace, folder)
    return Files(folder)


def key_of(name: str, layer: int) -> Key:
    return Key(None if STAGES[name].scope is Scope.MODEL else layer, name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [(name, layer) for name in STAGES_OF_TINY for layer in (0, 2) if layer == 0 or name != "embedding"],
)
def test_torch_computes_every_stage_from_the_files_alone(
    name: str, layer: int, trace: Trace, model: Model, tmp_path: Path
) -> None:
    files = exported(trace, model, key_of(name, layer), tmp_path / "kernel")
    found = BY_TORCH[name](files).numpy()

    expected, captured = files.arrays["expected"], files.arrays["captured"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    np.testing.assert_allclose(found, captured, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert files.said["stage"] == name
    assert files.said["difference"]["rel_l2"] < 2e-6


def by_formula(files: Files) -> Array:
    """Run the exported formula with the exported names, and nothing else."""
    names: dict[str, Any] = {"np": np, **files.constants}
    for name, values in files.arrays.items():
        if name in ("expected", "captured"):
            continue
        kind, _, expert = name.partition(".")
        if expert:
            names.setdefault(kind, {})[int(expert)] = values.astype(np.float64)
        else:
            names[name] = values.astype(np.float64)
    exec("\n".join(files.said["formula"]), names)
    return np.asarray(names[files.said["stage"]])


@pytest.mark.parametrize("recipe", one_in(5, RECIPES))
def test_the_formula_computes_every_stage_of_every_family(recipe: str, tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", recipe))
    request = Request(tokens=tuple(range(3, 16)), layers=range(3), stages=tuple(STAGES))
    trace = capture(model, request, MemorySink())
    keys = request.keys(model.geometry)
    assert {name for _, name in keys} == set(stages_of(model.geometry))
    for index, key in enumerate(keys):
        files = exported(trace, model, key, tmp_path / str(index))
        expected = files.arrays["expected"]
        np.testing.assert_allclose(
            by_formula(files), expected, rtol=0, atol=1e-11 * np.abs(expected).max(), err_msg=str(key)
        )


def without(trace: Trace, key: Key) -> Trace:
    return replace(trace, stages={each: array for each, array in trace.stages.items() if each != key})


def test_a_stage_whose_input_was_not_captured_is_refused(trace: Trace, model: Model) -> None:
    with pytest.raises(StageError, match="attn_scores is computed from k_post_rope of layer 1") as raised:
        kernel_case(without(trace, Key(1, "k_post_rope")), model.weights, Key(1, "attn_scores"))
    assert "capture k_post_rope of layer 1 too" in raised.value.remedy


def test_a_rotation_of_the_last_tokens_row_alone_is_refused(trace: Trace, model: Model) -> None:
    row = StageArray(data=trace.stages[0, "qkv_bias"].data[-1], layout=(Layout.LAST_TOKEN,))
    cut = replace(trace, stages={**trace.stages, Key(0, "qkv_bias"): row})
    with pytest.raises(StageError, match="needs every token"):
        kernel_case(cut, model.weights, Key(0, "q_post_rope"))


def test_a_stage_that_was_not_captured_is_written_without_it(
    trace: Trace, model: Model, tmp_path: Path
) -> None:
    files = exported(without(trace, Key(0, "attn_out")), model, Key(0, "attn_out"), tmp_path / "kernel")
    assert "captured" not in files.arrays
    assert files.said["difference"] is None


def test_weights_are_needed_only_where_the_formula_has_some(trace: Trace, tmp_path: Path) -> None:
    assert "scale" in exported(trace, None, Key(0, "attn_scores"), tmp_path / "kernel").constants
    with pytest.raises(ModelError, match="attn_norm is computed with weights") as raised:
        kernel_case(trace, None, Key(0, "attn_norm"))
    assert "--oracle MODEL" in raised.value.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attn_score@0", "did you mean 'attn_scores'"),
        ("attn_scores@", "STAGE@LAYER"),
        ("attn_scores@-1", "STAGE@LAYER"),
        ("attn_scores@3", "beyond the model"),
        ("attn_scores@99999999999", "STAGE@LAYER"),
        ("embedding@1", "layer 0 alone"),
        ("lm_head@0", "exists once"),
        ("moe_router@0", "has no stage moe_router"),
    ],
)
def test_a_place_that_is_none_is_refused(text: str, said: str, model: Model) -> None:
    with pytest.raises(AprFalsifyError) as raised:
        parse_place(text, model.geometry)
    assert said in str(raised.value)


def test_a_place_without_a_layer_is_the_first_one(model: Model) -> None:
    assert parse_place("Layer_Output", model.geometry) == Key(0, "post_ffn_residual")
    assert parse_place("attn_out@2", model.geometry) == Key(2, "attn_out")
    assert parse_place("lm_head", model.geometry) == Key(None, "lm_head")


def test_what_lies_there_already_is_not_touched(trace: Trace, model: Model, tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        exported(trace, model, Key(0, "attn_norm"), tmp_path / "kernel")
    assert list(tmp_path.iterdir()) == [tmp_path / "kernel"]
