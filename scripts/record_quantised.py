"""Record small linear layers as libraries quantise and dequantise them.

With the libraries of some importable: ``python scripts/record_quantised.py tests/data/quantised ct,bnb``;
``quanto`` and ``torchao`` are the others. Each file holds one layer named ``layer`` as a checkpoint has it,
the library's own dequantised weight as ``expected``, and its ``quantization_config`` in the header.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

Recorded = tuple[str, Mapping[str, torch.Tensor], torch.Tensor, Mapping[str, Any]]
"""Name of the file, the layer's tensors, what they stand for, and ``quantization_config``."""


def weight(width: int = 64) -> torch.Tensor:
    """Return [24, width] of normal values, one of them large."""
    values = torch.randn(24, width)
    values[0, 0] = 6.0
    return values


def compressed(
    name: str, form: str, said: Mapping[str, Any], values: torch.Tensor, **parts: torch.Tensor
) -> Recorded:
    """Return a layer that compressed-tensors quantises by the scales and zero points in ``parts``."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    settings = QuantizationArgs(**said)
    scheme = QuantizationScheme(targets=["Linear"], weights=settings)
    compressor = BaseCompressor.get_value_from_registry(form)
    held = compressor.compress({"weight": values, **parts}, scheme)
    group = {"targets": ["Linear"], "weights": json.loads(settings.model_dump_json())}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return f"ct-{name}", held, compressor.decompress(held, scheme)["weight"], config


def integers(values: torch.Tensor) -> Iterator[Recorded]:
    """Yield layers of int4 and int8."""
    groups = values.reshape(24, 2, 32)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    for bits in (4, 8):
        said = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32}
        scale = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
        none = torch.zeros(24, 2, dtype=torch.int8)
        yield compressed(
            f"pack-int{bits}-group",
            "pack-quantized",
            {**said, "symmetric": True},
            values,
            weight_scale=scale,
            weight_zero_point=none,
        )
        scale = (high - low) / (2**bits - 1)
        zero = (-(2 ** (bits - 1)) - torch.round(low / scale)).to(torch.int8)
        yield compressed(
            f"pack-int{bits}-asym",
            "pack-quantized",
            {**said, "symmetric": False},
            values,
            weight_scale=scale,
            weight_zero_point=zero,
        )
    largest = values.abs().amax(-1, keepdim=True)
    channel = {"type": "int", "symmetric": True, "strategy": "channel"}
    half = {"weight_scale": (largest / 7).bfloat16()}
    yield compressed(
        "pack-int4-channel", "pack-quantized", {**channel, "num_bits": 4}, values.bfloat16(), **half
    )
    eight = {**channel, "num_bits": 8}
    yield compressed("int8-channel", "int-quantized", eight, values, weight_scale=largest / 127)
    whole = {**eight, "strategy": "tensor"}
    yield compressed(
        "int8-tensor", "int-quantized", whole, values, weight_scale=largest.max().reshape(1) / 127
    )
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - torch.round(low / scale)).to(torch.int8)
    yield compressed(
        "int8-asym",
        "int-quantized",
        {**eight, "symmetric": False},
        values,
        weight_scale=scale,
        weight_zero_point=zero,
    )


def floats(values: torch.Tensor) -> Iterator[Recorded]:
    """Yield layers of FP8, NVFP4 and MXFP4."""
    said = {"num_bits": 8, "type": "float", "symmetric": True}
    largest = values.abs().amax(-1, keepdim=True)
    for strategy, scale in (("channel", largest), ("tensor", largest.max().reshape(1))):
        yield compressed(
            f"fp8-{strategy}",
            "float-quantized",
            {**said, "strategy": strategy},
            values,
            weight_scale=scale / 448,
        )
    wide = weight(80)
    padded = torch.nn.functional.pad(wide.abs(), (0, 16, 0, 8)).reshape(2, 16, 3, 32)
    blocks = {**said, "strategy": "block", "block_structure": [16, 32]}
    yield compressed("fp8-block", "float-quantized", blocks, wide, weight_scale=padded.amax((1, 3)) / 448)
    outer = (448 * 6 / values.abs().max()).reshape(1)
    inner = (values.reshape(24, 4, 16).abs().amax(-1) / 6 * outer).to(torch.float8_e4m3fn).float()
    four = {"num_bits": 4, "type": "float", "symmetric": True}
    yield compressed(
        "nvfp4",
        "nvfp4-pack-quantized",
        {**four, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
        values,
        weight_scale=inner,
        weight_global_scale=outer,
    )
    powers = 2.0 ** torch.floor(torch.log2(values.reshape(24, 2, 32).abs().amax(-1))) / 4
    yield compressed(
        "mxfp4",
        "mxfp4-pack-quantized",
        {**four, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        values,
        weight_scale=powers,
    )


def bitsandbytes() -> Iterator[Recorded]:
    """Yield layers of NF4, FP4 and LLM.int8."""
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    for kind, nested, width in (
        ("nf4", False, 128),
        ("nf4", True, 128),
        ("fp4", False, 128),
        ("nf4", False, 96),
    ):
        values = weight(width)
        codes, state = functional.quantize_4bit(
            values, blocksize=64, quant_type=kind, compress_statistics=nested
        )
        parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        if width % 64:  # its kernel for CPUs begins a block with each row, its others do not
            made = _dequantize_4bit_compute(
                codes.reshape(-1), state.absmax, state.code, 64, values.shape, torch.float32
            )
        else:
            made = functional.dequantize_4bit(codes, state)
        name = f"bnb-{kind}{'-nested' if nested else ''}{'-across-rows' if width % 64 else ''}"
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        yield name, {"weight": codes, **parts}, made, config
    codes, largest, _ = functional.int8_vectorwise_quant(weight(96).half())
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    made = functional.int8_vectorwise_dequant(codes, largest)
    yield "bnb-int8", parts, made, {"quant_method": "bitsandbytes", "load_in_8bit": True}


def of_quanto() -> Iterator[Recorded]:
    """Yield layers of quanto: eight bits, and fewer with and without groups, whose size it chooses."""
    from optimum.quanto import MaxOptimizer, freeze, qfloat8, qint2, qint4, qint8, quantize
    from optimum.quanto.library.extensions import cpp

    class Integers(MaxOptimizer):
        """Chooses integers for zero points, which ``quantize`` has no word for."""

        def __call__(self, *args: Any, **named: Any) -> Any:
            """Return scales and zero points."""
            return super().__call__(*args, **{**named, "zeropoint": True})

    # Its kernel would be compiled at first use. That this does the same, the values below show.
    cpp.ext._lib = SimpleNamespace(
        unpack=lambda octets, bits: torch.cat(
            [(octets >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)]
        )
    )
    for name, kind, width, integer in (
        ("int8", qint8, 64, False),
        ("fp8", qfloat8, 64, False),
        ("int4-rows", qint4, 64, False),
        ("int4", qint4, 256, False),
        ("int4-zeros", qint4, 160, True),
        ("int2", qint2, 160, False),
    ):
        values = weight(width)
        model = _model(values.clone())
        quantize(model, weights=kind, optimizer=Integers() if integer else None)
        freeze(model)
        state = {part.removeprefix("layer."): held for part, held in model.state_dict().items()}
        made = model.layer.weight.dequantize()
        assert (made - values).abs().max() <= 6 / 3  # half a step of the coarsest, whose largest value is 6
        assert (made - values).norm() < 0.4 * values.norm()
        yield f"quanto-{name}", state, made, {"quant_method": "quanto"}


def _model(values: torch.Tensor) -> torch.nn.Module:
    """Return a model whose one layer has ``values`` as its weight."""
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
    model.layer.weight.data = values
    return model


def of_torchao() -> Iterator[Recorded]:
    """Yield layers of torchao, what they are in the keys of the header that it reads."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup, PerTensor

    groups = {
        "weight_dtype": torch.int4,  # type: ignore[attr-defined] # its stubs lack it
        "granularity": PerGroup(32),
    }
    rows = {"weight_dtype": torch.int8, "granularity": PerAxis(0)}
    for name, config in (
        ("int8", Int8WeightOnlyConfig()),
        ("int8-tensor", Int8WeightOnlyConfig(granularity=PerTensor())),
        ("intx8-asym", IntxWeightOnlyConfig(**rows, mapping_type=MappingType.ASYMMETRIC)),
        ("intx4", IntxWeightOnlyConfig(**groups)),
        ("intx4-asym", IntxWeightOnlyConfig(**groups, mapping_type=MappingType.ASYMMETRIC)),
    ):
        model = _model(weight())
        quantize_(model, config)
        state, said = flatten_tensor_state_dict(model.state_dict())
        parts = {part.removeprefix("layer."): held for part, held in state.items()}
        yield f"torchao-{name}", parts, model.layer.weight.dequantize(), {"quant_method": "torchao", **said}


LIBRARIES = {
    "ct": lambda: (layer for values in [weight()] for layer in (*integers(values), *floats(values))),
    "bnb": bitsandbytes,
    "quanto": of_quanto,
    "torchao": of_torchao,
}
"""Word on the command line -> what records."""

_SETTINGS = ("quant_method", "format", "config_groups", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")


def main(folder: Path, libraries: list[str]) -> None:
    """Write every layer of some libraries into ``folder``."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        for name, parts, made, config in LIBRARIES[library]():
            held = {f"layer.{part}": tensor.contiguous().clone() for part, tensor in parts.items()}
            held["expected"] = made.to(torch.float32).contiguous().clone()
            said = {key: value for key, value in config.items() if key in _SETTINGS}
            others = {key: value for key, value in config.items() if key not in _SETTINGS}
            metadata = {"config": json.dumps(said), **others}
            save_file(held, folder / f"{name}.safetensors", metadata=metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
