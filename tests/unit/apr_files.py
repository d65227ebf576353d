"""Models that the real ``apr`` 0.72.3 makes, for tests of our reader of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unit.gguf_models import permuted_by_llama_cpp, random_blocks
from tests.unit.helpers import TINY

APR = shutil.which("apr")


def needs_apr(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs the real ``apr``."""
    skipped = pytest.mark.skipif(APR is None, reason="no apr binary on PATH")
    marked: Callable[..., None] = pytest.mark.real_apr(skipped(test))
    return marked


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def apr(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``apr`` offline; whatever its exit status."""
    assert APR is not None
    command = [APR, "--offline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def made(path: Path, *arguments: object) -> Path:
    """Run ``apr`` so that it writes ``path``."""
    done = apr(*arguments, "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def with_tokenizer(directory: Path) -> Path:
    """Give a checkpoint the tiny model's tokenizer, without which ``apr import`` makes no use of it."""
    for name in _TOKENIZER:
        shutil.copy(TINY / name, directory)
    return directory


def tiny_gguf(folder: Path) -> Path:
    """Return the tiny checkpoint as the GGUF that ``apr`` makes of it: Q4_K, with metadata and tokenizer."""
    base = made(folder / "of-checkpoint.apr", "import", TINY)
    return made(folder / "of-checkpoint.gguf", "quantize", base, "-s", "q4k", "--format", "gguf")


def regrown(
    source: Path,
    path: Path,
    kind: str,
    only: tuple[str, ...] = ("",),
    values: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the GGUF file ``source`` anew, its matrices in the type ``kind``, with the gguf package.

    Blocks that the package cannot make are random: only what becomes of them is of interest; those of Q6_K
    have the spread of the tensor. Matrices whose name holds none of ``only`` stay as they are. Those that
    ``values`` names are made of these, others of what the source holds.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        kept = len(tensor.shape) < 2 or not any(part in tensor.name for part in only)
        data = tensor.data if kept else _blocks(tensor, kind, (values or {}).get(tensor.name))
        number = tensor.tensor_type if kept else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(tensor: gguf.ReaderTensor, kind: str, values: np.ndarray | None) -> np.ndarray:
    shape = tuple(int(size) for size in tensor.shape)[::-1]
    if values is None:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    try:
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        blocks = random_blocks(shape, kind)
    if kind == "Q6_K":  # a block of 210 bytes ends with its f16 scale; 1400 is the spread of what it scales
        scale = np.float16(np.std(values) / 1400).view("<u2")
        blocks.reshape(-1, 210)[:, 208:] = np.array([scale & 255, scale >> 8], np.uint8)
    return blocks


def llama_gguf(source: Path, path: Path, weights: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> Path:
    """Write the weights of a Llama checkpoint as llama.cpp's conversion does: q and k permuted.

    Args:
        source: a GGUF file whose tokenizer is taken.
        path: where to write.
        weights: GGUF name -> values, in the checkpoint's own order.
        sizes: the metadata after ``llama.``; floats for the norm's epsilon and the base.

    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("tokenizer."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in sizes.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"llama.{key}", value)
    heads = {"attn_q": sizes["attention.head_count"], "attn_k": sizes["attention.head_count_kv"]}
    for name, values in weights.items():
        count = heads.get(name.split(".")[-2])
        data = permuted_by_llama_cpp(values, count) if count else values
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(directory: Path, architecture: gguf.MODEL_ARCH) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors in f32, by the names that the gguf package's own table gives them."""
    table = gguf.get_tensor_name_map(architecture, 8)
    return {
        str(table.get_name(name, try_suffixes=(".weight", ".bias"))): values.astype(np.float32)
        for name, values in load_file(directory / "model.safetensors").items()
    }


def tiny_llama_gguf(checkpoint: Path, tokenizer: Path, path: Path, **more: np.ndarray) -> Path:
    """Write the tiny Llama as llama.cpp converts it, in f32; ``more`` tensors go in as they are."""
    config = json.loads((checkpoint / "config.json").read_text())
    sizes = {
        "block_count": config["num_hidden_layers"],
        "context_length": 512,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "vocab_size": config["vocab_size"],
    }
    named = {f"{name}.weight": values for name, values in more.items()}
    weights = gguf_tensors(checkpoint, gguf.MODEL_ARCH.LLAMA)
    return llama_gguf(tokenizer, path, {**weights, **named}, sizes)
