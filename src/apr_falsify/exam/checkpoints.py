"""Random checkpoints of every family and number format, written as the real ones are.

They are built like trained ones where that matters to a comparison: norm weights around 1, biases larger
than what they are added to, a few massive channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.weights import Model
from apr_falsify.model.families import family_of, shape_of_role
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.rotation import rope_frequencies

F32 = npt.NDArray[np.float32]
Place = tuple[str, int | None]

ONCE = ("embed", "final_norm", "lm_head")
_NORMS = ("attn_norm", "ffn_norm", "final_norm", "q_norm", "k_norm")
MASSIVE = 12.0
"""How much larger a massive channel is, of which there is one in 64."""


def places_of(geometry: Geometry) -> list[Place]:
    """Return every weight that a model of ``geometry`` has."""
    absent = {
        *(() if geometry.qkv_bias else ("q_bias", "k_bias", "v_bias")),
        *(() if geometry.output_bias else ("o_bias",)),
        *(() if geometry.mlp_bias else ("gate_bias", "up_bias", "down_bias")),
        *(("lm_head",) if geometry.tied else ()),
    }
    roles = [role for role in family_of(geometry).weights if role not in absent]
    layers: list[int | None] = list(range(geometry.layers))
    return [(role, layer) for role in roles for layer in ([None] if role in ONCE else layers)]


def random_weights(geometry: Geometry, seed: int) -> dict[Place, F32]:
    """Return random weights of a model of ``geometry``."""
    rng = np.random.default_rng(seed)
    found: dict[Place, F32] = {}
    for role, layer in places_of(geometry):
        shape = shape_of_role(role, geometry)
        # What f16 can hold, so that runs in f16 have the very same weights.
        found[role, layer] = _draw(rng, role, shape).astype(np.float16).astype(np.float32)
    return found


def _draw(rng: np.random.Generator, role: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if role in _NORMS:
        return rng.normal(1.0, 0.3, shape)
    if role.endswith("_bias"):
        return rng.normal(0.0, 2.0, shape)
    values = rng.normal(0.0, 1.0 if role == "embed" else shape[-1] ** -0.5, shape)
    if role in ("embed", "down"):  # what feeds the residual stream, where massive channels live
        axis = -1 if role == "embed" else 0
        massive = rng.integers(shape[axis], size=max(1, shape[axis] // 64))
        np.moveaxis(values, axis, 0)[massive] *= MASSIVE
    return values


def write_hf(
    directory: Path, config: Mapping[str, Any], weights: Mapping[Place, F32], tokenizer: Path | None = None
) -> Path:
    """Write a HuggingFace directory, its tensors in the config's ``dtype``.

    Args:
        directory: where; it must not exist.
        config: its config.json.
        weights: its weights by role and layer.
        tokenizer: a directory whose tokenizer it shall have.

    """
    from safetensors.numpy import save_file

    names = family_of(geometry_of_config(config)).weights
    kind = np.float16 if config.get("dtype") == "float16" else np.float32
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        names[role].format(n=layer): np.ascontiguousarray(values, dtype=kind)
        for (role, layer), values in weights.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for name in _TOKENIZER_FILES if tokenizer is not None else ():
        assert tokenizer is not None
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    return directory


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def weights_of(model: Model) -> dict[Place, F32]:
    """Return all weights of ``model``."""
    found: dict[Place, F32] = {}
    for role, layer in places_of(model.geometry):
        tensor = model.weights.tensor(role, layer)
        found[role, layer] = np.array(tensor.rows(0, tensor.shape[0]), dtype=np.float32)
    return found


def tensors_of(model: Model) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a HuggingFace directory by name, as its files hold them."""
    from safetensors.numpy import load_file

    return {name: values for file in model.files for name, values in load_file(file).items()}


def write_gguf(
    path: Path, geometry: Geometry, weights: Mapping[Place, F32], kind: str, tokenizer: Path | None = None
) -> Path:
    """Write a GGUF file, its projections as ``kind`` (``q4_0``, ``q4_1``, ``q8_0``, or ``q4_k``).

    ``q4_k`` blocks are drawn anew, with the spread of each tensor: the gguf package cannot write them. It has
    the tokenizer of the directory ``tokenizer``, where one is named.
    """
    import gguf

    writer = gguf.GGUFWriter(path, family_of(geometry).gguf_architectures[0])
    add_metadata(writer, geometry, tokenizer)
    if geometry.rope.kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _divisors(geometry).astype(np.float32))
    for (role, layer), values in weights.items():
        name = family_of(geometry).gguf_weights[role].format(n=layer)
        held = as_converted(role, values, geometry)
        if held.ndim == 1 or role in ONCE:
            writer.add_tensor(name, held)
        else:
            blocks = _BLOCKS.get(kind, _quantised)(held, kind)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


def add_metadata(writer: Any, geometry: Geometry, tokenizer: Path | None) -> None:
    """Add sizes, constants and a directory's byte-level tokenizer to a GGUF file that is being written."""
    for key, value in _metadata(geometry).items():
        add: Callable[[str, Any], None] = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{family_of(geometry).gguf_architectures[0]}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, geometry.vocab)


def _add_tokenizer(writer: Any, directory: Path, vocab: int) -> None:
    """Add tokens, padded to ``vocab``, and merges, as llama.cpp's conversion names them."""
    model = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = {number: token for token, number in model["vocab"].items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens.get(number, f"<|pad{number}|>") for number in range(vocab)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])


def _metadata(geometry: Geometry) -> dict[str, int | float]:
    return {
        "block_count": geometry.layers,
        "embedding_length": geometry.hidden,
        "feed_forward_length": geometry.intermediate,
        "attention.head_count": geometry.heads,
        "attention.head_count_kv": geometry.kv_heads,
        "attention.key_length": geometry.head_dim,
        "attention.layer_norm_rms_epsilon": float(geometry.norm_eps),
        "rope.freq_base": float(geometry.rope.theta),
    }


def _divisors(geometry: Geometry) -> npt.NDArray[np.float64]:
    """Return what GGUF divides the plain frequencies by, for a rope rule that it has no name for."""
    plain, _ = rope_frequencies(Rope(theta=geometry.rope.theta), geometry.head_dim)
    scaled, _ = rope_frequencies(geometry.rope, geometry.head_dim)
    return plain / scaled


def as_converted(role: str, values: F32, geometry: Geometry) -> F32:
    """Return a tensor as a conversion to GGUF stores it: q and k in interleaved pairs where it does so."""
    if not (family_of(geometry).gguf_interleaved and role in ("q", "k", "q_bias", "k_bias")):
        return np.ascontiguousarray(values)
    halves = values.reshape(-1, 2, geometry.head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _quantised(values: F32, kind: str) -> npt.NDArray[np.uint8]:
    import gguf

    blocks: npt.NDArray[np.uint8] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
    return blocks


def _random_q4_k(values: F32, kind: str) -> npt.NDArray[np.uint8]:
    """Return random ``q4_k`` blocks whose values have mean 0 and about the spread of ``values``.

    A block of 256 is f16 d and dmin, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit integers q;
    a value is d * scale * q - dmin * minimum (``ggml-common.h``).
    """
    rng = np.random.default_rng(values.shape[0] * 7919 + values.shape[1])
    shape = (values.shape[0], values.shape[1] // 256)
    d = (np.std(values) / (32 * 6.5) * rng.uniform(0.5, 1.5, shape)).astype(np.float16)
    dmin = (7.5 * d.astype(np.float32)).astype(np.float16)
    head = np.stack((d, dmin), axis=-1).view(np.uint8)
    body = rng.integers(0, 256, (*shape, 140), np.uint8)
    return np.concatenate((head, body), axis=-1).reshape(values.shape[0], -1)


_BLOCKS: Mapping[str, Callable[[F32, str], npt.NDArray[np.uint8]]] = {"q4_k": _random_q4_k}
"""Kind -> how its blocks are made, where the gguf package cannot."""
