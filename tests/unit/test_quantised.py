"""Quantised checkpoints: every value as the library that wrote it has it, broken ones refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from apr_falsify.errors import ModelError
from apr_falsify.formats.quantised.checkpoint import Quantised
from apr_falsify.formats.quantised.levels import FP4_E2M1, FP8, powers_of_two
from apr_falsify.formats.quantised.packing import unpacked, unpacked_columns
from apr_falsify.formats.quantised.table import SCHEMES, dequantised
from apr_falsify.formats.safetensors import read_safetensors
from apr_falsify.formats.tensors import Tensor, UnreadableTensor
from apr_falsify.formats.weights import open_model
from tests.support import DATA
from tests.unit.helpers import model_directory, whole
from tests.unit.quantised_files import changed, quantise_checkpoint, words

RECORDED = sorted((DATA / "quantised").glob("*.safetensors"))

ROUNDED = {
    "ct-pack-int4-channel": 2.0**-8,  # the library multiplies in bf16, which its scale is in
    "ct-nvfp4": 2.0**-7,  # in bf16, with the scale rounded to it too
    "ct-mxfp4": 0.0,
    "bnb-int8": 2.0**-22,  # the library multiplies with 1 / 127
}
"""What a library's own rounding costs; all others compute the very product in f32."""


def layer_of(path: Path, without: str = "") -> dict[str, Tensor]:
    """Read a recorded layer as a checkpoint of one layer, perhaps without one of its parts."""
    with safe_open(path, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    tensors = {tensor.name: tensor for tensor in read_safetensors(path) if tensor.name != without}
    shape = tensors["expected"].shape
    files = dict.fromkeys(tensors, path)
    return dequantised(
        {"quantization_config": config}, tensors, files, path.parent, {"layer.weight": shape}.get
    )


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_value_is_the_librarys(path: Path) -> None:
    tensors = layer_of(path)
    ours, theirs = whole(tensors["layer.weight"]), whole(tensors["expected"])
    allowed = ROUNDED.get(path.stem, 0.0)
    assert ours.dtype == np.float32
    assert np.all(np.abs(ours - theirs) <= allowed * np.abs(theirs))
    assert set(tensors) == {"layer.weight", "expected"}  # of the parts nothing is left over
    np.testing.assert_array_equal(tensors["layer.weight"].rows(5, 18), ours[5:18])


def test_all_libraries_have_a_recording_of_each_of_their_forms() -> None:
    names = {path.stem for path in RECORDED}
    assert {name.split("-")[0] for name in names} == {"ct", "bnb", "quanto", "torchao"}
    assert len(names) >= 29


def test_the_state_of_quanto_is_known_by_its_names() -> None:
    path = DATA / "quantised" / "quanto-int4.safetensors"
    tensors = {tensor.name: tensor for tensor in read_safetensors(path)}
    files = dict.fromkeys(tensors, path)
    assert set(dequantised({}, tensors, files, path.parent, lambda name: (24, 256))) == {
        "layer.weight",
        "expected",
    }
    # Of what the model's sizes say nothing, nothing is made.
    assert "layer.weight" not in dequantised({}, tensors, files, path.parent)


def test_int4_of_torchao_is_signed_scaled_and_shifted() -> None:
    """As FBGEMM's ``int4_row_quantize_zp`` and ``pack_int4`` define it: q in -8..7, q * scale + zero.

    Byte 0xD2 has the codes 2 and -3. Two groups of 32: 0.5 and 10, then 2 and -1.
    """
    said = {"_type": "Int4Tensor", "_data": {"block_size": [1, 32], "shape": [1, 64]}}
    entry = json.dumps({**said, "_tensor_data_names": ["qdata", "scale", "zero_point"]})
    parts = {
        "m._weight_qdata": np.full((1, 32), 0xD2, np.uint8),
        "m._weight_scale": np.array([[0.5], [2.0]], np.float32),
        "m._weight_zero_point": np.array([[10.0], [-1.0]], np.float32),
    }
    tensor = of_torchao(parts, entry)["m.weight"]
    assert (tensor.type, tensor.shape) == ("int4", (1, 64))
    np.testing.assert_array_equal(whole(tensor), [[11.0, 8.5] * 16 + [3.0, -7.0] * 16])


def of_torchao(parts: dict[str, Any], entry: str) -> dict[str, Tensor]:
    """Return a layer ``m`` of torchao, written to a file and read."""
    from tempfile import TemporaryDirectory

    from safetensors.numpy import save_file

    with TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        save_file(parts, path, metadata={"m.weight": entry, "tensor_names": '["m.weight"]'})
        tensors = {tensor.name: tensor for tensor in read_safetensors(path)}
        return dequantised({}, tensors, dict.fromkeys(tensors, path), path.parent)


TORCHAO = {"_type": "Int8Tensor", "_data": {"block_size": [1, 64]}, "_tensor_data_names": ["qdata", "scale"]}
REFUSED_OF_TORCHAO: dict[str, tuple[str, dict[str, Any]]] = {
    "a tensor of a device's own": (
        "m._weight_qdata belongs to torchao's Int4TilePackedTo4dTensor",
        {"_type": "Int4TilePackedTo4dTensor"},
    ),
    "a block that does not divide": (
        r"m._weight_qdata has the shape \[2, 64\][\s\S]*block_size, which is \[1, 48\]",
        {"_data": {"block_size": [1, 48]}},
    ),
    "a part that is not there": (
        "m._weight_zero_point is missing",
        {"_tensor_data_names": ["zero_point"]},
    ),
    "inputs that are quantised too": (
        "m._weight_qdata says .*activation_quantization is 'int8_asym_per_token'[\\s\\S]*weights alone",
        {"_data": {"block_size": [1, 64], "activation_quantization": "int8_asym_per_token"}},
    ),
    "inputs that are quantised by settings of their own": (
        "m._weight_qdata says .*act_quant_kwargs is",
        {"_data": {"block_size": [1, 64], "act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs"}}},
    ),
    "no block": ("block_size", {"_data": {}}),
    "no attributes": ("its metadata on m.weight", {"_data": 7}),
    "a width that is none": (
        "target_dtype is 'uint9'",
        {
            "_type": "IntxUnpackedToInt8Tensor",
            "_data": {"block_size": [1, 64], "target_dtype": {"_data": "uint9"}},
        },
    ),
}


@pytest.mark.parametrize("case", REFUSED_OF_TORCHAO)
def test_a_broken_layer_of_torchao_is_refused_by_name(case: str) -> None:
    says, said = REFUSED_OF_TORCHAO[case]
    parts = {"m._weight_qdata": np.ones((2, 64), np.int8), "m._weight_scale": np.ones((2, 1), np.float32)}
    with pytest.raises(ModelError, match=says):
        of_torchao(parts, json.dumps({**TORCHAO, **said}))


def of_quanto(scale: torch.Tensor) -> Tensor:
    """Return a layer ``m`` of quanto, eight bits of [3, 4], read."""
    codes = np.arange(12, dtype=np.int8).reshape(3, 4)
    held: dict[str, Tensor] = {
        "m.weight._data": UnreadableTensor(name="m.weight._data", type="I8", shape=(3, 4), bits=codes),
        **plain_of("m.weight._scale", scale),
    }
    return dequantised({"quantization_config": {"quant_method": "quanto"}}, held, {}, Path("memory"))[
        "m.weight"
    ]


def test_a_scale_of_quanto_is_one_for_each_row_or_one_number() -> None:
    codes = np.arange(12.0).reshape(3, 4)
    rows = torch.tensor([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(whole(of_quanto(rows[:, None])), codes * [[1.0], [2.0], [4.0]])
    for one in (torch.tensor(2.0), torch.tensor([2.0]), torch.tensor([[2.0]])):
        np.testing.assert_array_equal(whole(of_quanto(one)), codes * 2)
    for other in (rows, rows[None]):
        with pytest.raises(
            ModelError, match=r"m.weight._scale has the shape[\s\S]*\[3, 1\], one for each row"
        ):
            of_quanto(other)


# --- tables of small floats -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_every_byte_of_fp8_is_what_torch_says(name: str, dtype: torch.dtype) -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).numpy()
    np.testing.assert_array_equal(FP8[name], theirs)


def test_every_byte_of_a_power_of_two_is_what_torch_says() -> None:
    octets = torch.arange(256, dtype=torch.uint8)
    theirs = octets.view(torch.float8_e8m0fnu).to(torch.float32).numpy()
    np.testing.assert_array_equal(powers_of_two(octets.numpy()), theirs)


def test_the_codes_of_fp4_are_those_of_the_published_table() -> None:
    half = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(FP4_E2M1, [*half, *(-value for value in half)])


# --- transformers' own multiplication ---------------------------------------------------------------


def of_fp8(weight: torch.Tensor, scale: torch.Tensor, said: dict[str, Any]) -> dict[str, Tensor]:
    """Return an FP8 layer, read."""
    held: dict[str, Tensor] = {
        "m.weight": UnreadableTensor(
            name="m.weight",
            type="F8_E4M3",
            shape=tuple(weight.shape),
            bits=weight.view(torch.uint8).numpy(),
        ),
        **plain_of("m.weight_scale_inv", scale),
    }
    config = {"quantization_config": {"quant_method": "fp8", **said}}
    return dequantised(config, held, {}, Path("memory"))


def plain_of(name: str, values: torch.Tensor) -> dict[str, Tensor]:
    from apr_falsify.formats.tensors import PlainTensor

    return {name: PlainTensor(name=name, type="f32", data=values.numpy())}


@pytest.mark.parametrize("block", [[16, 32], None])
def test_fp8_in_blocks_is_what_transformers_makes_of_it(block: list[int] | None) -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    torch.manual_seed(1)
    weight = (torch.randn(40, 80) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 3) if block else torch.rand(())
    theirs = _dequantize_fp8_weight(weight, scale, block, torch.float32)
    ours = whole(of_fp8(weight, scale, {"weight_block_size": block})["m.weight"])
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_experts_in_mxfp4_are_what_transformers_makes_of_them() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(2)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    held: dict[str, Tensor] = {
        f"e.up{end}": UnreadableTensor(
            name=f"e.up{end}", type="U8", shape=tuple(part.shape), bits=part.numpy()
        )
        for end, part in (("_blocks", blocks), ("_scales", scales))
    }
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    tensor = dequantised(config, held, {}, Path("memory"))["e.up"]
    np.testing.assert_array_equal(whole(tensor), theirs)
    np.testing.assert_array_equal(tensor.rows(1, 2), theirs[1:2])


def test_both_scales_of_nvfp4_are_multiplied_in_model_optimizers_form() -> None:
    # Sixteen codes: 1.0 (code 2) and -3.0 (code 13) in turns; scale 1.5 (0x3C), second scale 0.25.
    held: dict[str, Tensor] = {
        "m.weight": UnreadableTensor(
            name="m.weight", type="U8", shape=(1, 8), bits=np.full((1, 8), 0xD2, np.uint8)
        ),
        "m.weight_scale": UnreadableTensor(
            name="m.weight_scale", type="F8_E4M3", shape=(1, 1), bits=np.array([[0x3C]], np.uint8)
        ),
        **plain_of("m.weight_scale_2", torch.tensor(0.25)),
    }
    config = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    tensor = dequantised(config, held, {}, Path("memory"))["m.weight"]
    np.testing.assert_array_equal(whole(tensor), [[0.375, -1.125] * 8])


# --- GPTQ and AWQ, by their published packing -------------------------------------------------------

WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("gptq", {"group_size": 32}, {}),
    "gptq-v2": ("gptq", {"group_size": 32, "checkpoint_format": "gptq_v2"}, {"v2": True}),
    "gptq-act-order": ("gptq", {"group_size": 32, "desc_act": True}, {"act_order": True}),
    "gptq-symmetric": ("gptq", {"group_size": 32, "sym": True}, {"symmetric": True}),
    **{f"gptq-{bits}": ("gptq", {"group_size": 32}, {"bits": bits}) for bits in (2, 3, 8)},
    "awq": ("awq", {"group_size": 32, "zero_point": True, "version": "gemm"}, {}),
}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("plain"), **WIDE)


@pytest.mark.parametrize("way", WAYS)
def test_a_packed_checkpoint_is_read_as_it_was_meant(way: str, plain_model: Path, tmp_path: Path) -> None:
    method, said, how = WAYS[way]
    meant = quantise_checkpoint(plain_model, tmp_path, method, said, **how)
    model = open_model(tmp_path)
    assert model.weights.tensors.keys() == meant.keys()
    for name, weight in meant.items():
        np.testing.assert_array_equal(whole(model.weights.tensors[name]), weight)
    tensor = model.weights.tensor("up", 1)
    assert (tensor.type, tensor.shape) == (f"int{how.get('bits', 4)}", (96, 64))
    np.testing.assert_array_equal(tensor.rows(7, 45), meant["model.layers.1.mlp.up_proj.weight"][7:45])


def test_a_zero_point_of_0_is_read_back_through_the_borrow_of_gptqs_first_format() -> None:
    # GPTQModel takes 1 from every field of a word at once: 0 - 1 borrows from the field above it.
    zeros = np.array([[0, 5, 15, 1, 0, 0, 8, 3]])
    borrowed = (words(zeros, 4).view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    from apr_falsify.formats.quantised.gptq import _one_more

    np.testing.assert_array_equal(unpacked(_one_more(borrowed, 4), 4), zeros)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_columns_of_packed_codes_are_those_of_the_whole(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96))
    packed = words(codes, bits)
    np.testing.assert_array_equal(unpacked(packed, bits), codes)
    for start, stop in ((0, 96), (1, 2), (31, 33), (40, 95)):
        np.testing.assert_array_equal(unpacked_columns(packed, bits, start, stop), codes[:, start:stop])


# --- what is refused --------------------------------------------------------------------------------

UP = "model.layers.1.mlp.up_proj"
Break = tuple[str, str, Any, dict[str, Any]]

BROKEN: dict[str, Break] = {
    "a scale is missing": (f"{UP}.scales is missing", f"{UP}.scales", None, {}),
    "zero points are missing": (f"{UP}.qzeros is missing", f"{UP}.qzeros", None, {}),
    "act-order without its groups": (f"{UP}.g_idx is missing", f"{UP}.g_idx", None, {"desc_act": True}),
    "groups that do not divide": (
        r"proj.qweight has \d+ input channels[\s\S]*multiple of the group size, which is 40",
        "x",
        None,
        {"group_size": 40},
    ),
    "no group size": ("is 'much'", "x", None, {"group_size": "much"}),
    "an unknown method": ("quantised by 'gtpq'", "x", None, {"quant_method": "gtpq"}),
    "no method": ("quant_method", "x", None, {"quant_method": None}),
    "an unknown width": ("bits: 5", "x", None, {"bits": 5}),
    "an unknown format": ("checkpoint_format: 'marlin'", "x", None, {"checkpoint_format": "marlin"}),
    "too few codes": (
        rf"{UP}.(scales|g_idx) has the shape",
        f"{UP}.qweight",
        np.zeros((4, 96), np.int32),
        {},
    ),
    "too few scales": (
        rf"{UP}.scales has the shape \[1, 96\]",
        f"{UP}.scales",
        np.zeros((1, 96), np.float16),
        {},
    ),
    "too many zero points": (
        rf"{UP}.qzeros has the shape \[2, 13\]",
        f"{UP}.qzeros",
        np.zeros((2, 13), np.int32),
        {},
    ),
    "a group that is none": (
        rf"{UP}.g_idx names the group 2",
        f"{UP}.g_idx",
        np.full(64, 2, np.int32),
        {},
    ),
    "codes of floats": (rf"{UP}.qweight is of type f32", f"{UP}.qweight", np.zeros((8, 96), np.float32), {}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_with_tensor_and_file(
    case: str, plain_model: Path, tmp_path: Path
) -> None:
    says, name, array, said = BROKEN[case]
    quantise_checkpoint(plain_model, tmp_path, "gptq", {"group_size": 32})
    changed(tmp_path, name, array, **said)
    with pytest.raises(ModelError) as refusal:
        open_model(tmp_path)
    assert refusal.value.where in {str(tmp_path / "model.safetensors"), str(tmp_path / "config.json")}
    assert refusal.match(says)
    assert "download" not in str(refusal.value)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recorded_layer_needs_each_of_its_parts(path: Path) -> None:
    main = ("layer.weight", "layer.weight_packed")
    spared = (*main, "expected", "layer.weight_format", "layer.input_scale", "layer.output_scale")
    names = [tensor.name for tensor in read_safetensors(path)]
    for part in (name for name in names if name not in spared):
        with pytest.raises(ModelError, match=r"is missing|has the shape|is of type"):
            whole(layer_of(path, without=part)["layer.weight"])


def test_a_scheme_has_one_row() -> None:
    assert set(SCHEMES) >= {"gptq", "awq", "compressed-tensors", "fp8", "mxfp4", "modelopt", "bitsandbytes"}
    assert set(SCHEMES) >= {"quanto", "torchao"}
    empty = Quantised(config={"quant_algo": "FP8", "bits": 4}, tensors={}, files={}, where=Path("memory"))
    assert [dict(read(empty)[0]) for read in SCHEMES.values()] == [{}] * len(SCHEMES)
