"""Quantised layers written by hand in plain Python integers, apart from what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Arrays = dict[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output channel at each place of a word, as AutoAWQ's packing has it."""


def words(codes: Ints, bits: int) -> npt.NDArray[np.int32]:
    """Pack the codes of each row into one number, the first lowest, and cut that into words of 32 bits."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * at) for at, code in enumerate(row))
        rows.append([(number >> (32 * at)) & 0xFFFFFFFF for at in range(len(row) * bits // 32)])
    return np.array(rows, dtype=np.uint32).view(np.int32)


def integers(
    weight: npt.NDArray[Any], groups: Ints, bits: int, symmetric: bool = False
) -> tuple[Ints, Ints, npt.NDArray[np.float16]]:
    """Return codes [out, in], zero points and scales [out, groups] of round-to-nearest, range by range."""
    top = (1 << bits) - 1
    count = int(groups.max()) + 1
    codes = np.zeros(weight.shape, np.int64)
    zeros, scales = np.zeros((len(weight), count), np.int64), np.zeros((len(weight), count), np.float16)
    for group in range(count):
        columns = groups == group
        part = weight[:, columns].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, group] = (high - low) / top
        zeros[:, group] = (top + 1) // 2 if symmetric else np.rint(-low / scales[:, group].astype(np.float64))
        steps = part / scales[:, [group]].astype(np.float64)
        codes[:, columns] = np.clip(np.rint(steps) + zeros[:, [group]], 0, top)
    return codes, zeros, scales


def decoded(codes: Ints, zeros: Ints, scales: npt.NDArray[Any], groups: Ints) -> npt.NDArray[np.float32]:
    """Return (code - zero) * scale."""
    return ((codes - zeros[:, groups]) * scales[:, groups].astype(np.float64)).astype(np.float32)


def gptq(
    weight: npt.NDArray[Any],
    *,
    bits: int = 4,
    size: int = 32,
    act_order: bool = False,
    v2: bool = False,
    symmetric: bool = False,
) -> tuple[Arrays, npt.NDArray[np.float32]]:
    """Return the tensors of a GPTQ layer, and the weight that they stand for."""
    groups = np.arange(weight.shape[1]) // size
    if act_order:
        groups = np.random.default_rng(5).permutation(groups)
    codes, zeros, scales = integers(weight, groups, bits, symmetric)
    stored = zeros if v2 else (zeros - 1) % (1 << bits)
    parts = {
        "qweight": np.ascontiguousarray(words(codes, bits).T),
        "qzeros": words(stored.T, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": groups.astype(np.int32),
    }
    return parts, decoded(codes, zeros, scales, groups)


def awq(weight: npt.NDArray[Any], *, size: int = 32) -> tuple[Arrays, npt.NDArray[np.float32]]:
    """Return the tensors of an AWQ layer of version ``gemm``, and the weight that they stand for."""
    groups = np.arange(weight.shape[1]) // size
    codes, zeros, scales = integers(weight, groups, 4)

    def packed(by_channel: Ints) -> npt.NDArray[np.int32]:
        eights = by_channel.T.reshape(by_channel.shape[1], -1, 8)[..., AWQ_ORDER]
        return words(eights.reshape(by_channel.shape[1], -1), 4)

    parts = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": np.ascontiguousarray(scales.T)}
    return parts, decoded(codes, zeros, scales, groups)


WRITERS = {"gptq": gptq, "awq": awq}


def quantise_checkpoint(
    source: Path, target: Path, method: str, said: Mapping[str, Any], **how: Any
) -> dict[str, npt.NDArray[Any]]:
    """Write ``source`` with its projections quantised, and return all weights as they then are."""
    held: Arrays = {}
    meant: dict[str, npt.NDArray[Any]] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in PROJECTIONS:
            parts, meant[name] = WRITERS[method](weight, **how)
            held.update({f"{module}.{part}": array for part, array in parts.items()})
        else:
            held[name] = meant[name] = weight
    target.mkdir(parents=True, exist_ok=True)
    save_file(held, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": how.get("bits", 4), **said}
    (target / "config.json").write_text(json.dumps(config))
    return meant


def changed(directory: Path, name: str, array: npt.NDArray[Any] | None, **said: Any) -> None:
    """Put another tensor into a checkpoint, or take it out, and other settings into its config."""
    tensors = load_file(directory / "model.safetensors")
    if array is None:
        tensors.pop(name, None)
    else:
        tensors[name] = array
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"].update(said)
    (directory / "config.json").write_text(json.dumps(config))


def bits_of(values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return bytes."""
    return np.array(values, dtype=np.uint8)
