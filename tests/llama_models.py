"""GGUF files that llama.cpp itself makes, and what a test of the live runtime needs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from apr_falsify.model.families import family_of
from tests.unit.gguf_models import metadata_of, permuted_by_llama_cpp, write_gguf
from tests.unit.helpers import random_tensors, roles_of, small_geometry

_QUANTISE = """
import ctypes, os, sys
import llama_cpp.llama_cpp as llama
source, target, kind = sys.argv[1:]
params = llama.llama_model_quantize_default_params()
params.ftype = 0 if kind == "ALL_F32" else getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
params.allow_requantize, params.nthread = True, 1
sys.exit(llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))
"""


PACKAGES = {"llama_cpp": "llama-cpp-python"}
"""What is imported -> what is installed."""


def package_or_skip(name: str) -> None:
    """Skip the test where the package is not there."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")


def llama_cpp_or_skip() -> None:
    """Skip the test where llama.cpp is not there to be run."""
    package_or_skip("llama_cpp")


def quantised(source: Path, target: Path, kind: str) -> Path:
    """Let llama.cpp convert a GGUF file to another mixture of types, ``Q4_K_M`` say."""
    command = [sys.executable, "-c", _QUANTISE, str(source), str(target), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def random_gguf(path: Path, **knobs: Any) -> Path:
    """Write a small random model as llama.cpp would convert it, without a tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64}
    geometry = small_geometry(**{**sizes, **knobs})
    row, original = family_of(geometry), random_tensors(geometry)
    architecture = row.gguf_architectures[0]
    tensors = {}
    for role, layer in roles_of(geometry):
        data = original[row.weights[role].format(n=layer)]
        if row.gguf_interleaved and role in ("q", "k"):
            data = permuted_by_llama_cpp(data, geometry.heads if role == "q" else geometry.kv_heads)
        tensors[row.gguf_weights[role].format(n=layer)] = np.ascontiguousarray(data)
    extra = {
        "tokenizer.ggml.model": "no_vocab",
        f"{architecture}.vocab_size": geometry.vocab,
        f"{architecture}.context_length": 512,
        f"{architecture}.rope.dimension_count": geometry.head_dim,
        f"{architecture}.attention.value_length": geometry.head_dim,
    }
    metadata = {**metadata_of(geometry, architecture), **extra}
    return write_gguf(path, tensors, metadata, architecture=architecture)


def with_metadata(source: Path, target: Path, **changed: str) -> Path:
    """Copy a GGUF file with other texts in its metadata; dots in their names are given as two underscores."""
    reader = gguf.GGUFReader(source)
    texts = {name.replace("__", "."): value for name, value in changed.items()}
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        value = texts.get(field.name, field.contents())
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
