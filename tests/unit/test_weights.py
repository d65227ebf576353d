"""Weights by role: exact values from safetensors, and every broken model refused by name."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from apr_falsify.errors import ModelError
from apr_falsify.formats.safetensors import safetensors_files
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model, open_model
from tests.unit.helpers import CONFIG, TINY, model_directory, plain, random_tensors, small_geometry, whole


def test_every_tensor_of_the_tiny_checkpoint_equals_torchs() -> None:
    from safetensors.torch import load_file

    theirs = load_file(TINY / "model.safetensors")
    ours = open_model(TINY).weights.tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(whole(ours[name]), tensor.to(torch.float32).numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_exact_in_every_plain_format(tmp_path: Path, dtype: torch.dtype) -> None:
    geometry = small_geometry()
    torch.manual_seed(0)
    tensors = {
        name: (torch.randn(data.shape, dtype=torch.float64) * 10.0 ** torch.randint(-9, 5, data.shape)).to(
            dtype
        )
        for name, data in random_tensors(geometry).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_torch(tensors, tmp_path / "model.safetensors")
    ours = open_model(tmp_path).weights.tensors
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in tensors.items():
        values = whole(ours[name])
        assert values.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        np.testing.assert_array_equal(values, tensor.to(wide).numpy())


def test_every_bit_pattern_of_bf16_is_decoded_as_torch_decodes_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    theirs = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
    ours = whole(plain(bits, "bf16"))
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def sharded(directory: Path, names: dict[str, str] | None = None) -> Path:
    """A model in two files with an index; ``names`` overrides where the index sends a tensor."""
    model_directory(directory)
    (directory / "model.safetensors").unlink()
    tensors = random_tensors(small_geometry())
    weight_map = {}
    for number, part in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": {**weight_map, **(names or {})}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_sharded_model_is_read_whole(tmp_path: Path) -> None:
    model = open_model(sharded(tmp_path))
    for name, data in random_tensors(small_geometry()).items():
        np.testing.assert_array_equal(whole(model.weights.tensors[name]), data)
    assert len(model.files) == 2


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"x": "model-00003-of-00002.safetensors"})
    with pytest.raises(ModelError, match="model-00003-of-00002") as refusal:
        open_model(tmp_path)
    assert refusal.value.where == str(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "", ".", ".."])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    model_directory(tmp_path)
    sharded(tmp_path / "inner", {"x": name})
    with pytest.raises(ModelError, match=r"the index names|are missing"):
        open_model(tmp_path / "inner")


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 3}}', b'{"a":' * 50_000, b"\xff"],
)
def test_a_garbled_index_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors index") as refusal:
        open_model(tmp_path)
    assert refusal.value.where == str(tmp_path / "model.safetensors.index.json")


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    model_directory(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert len(open_model(tmp_path / "snapshot").files) == 1


def test_the_usual_name_is_taken_before_other_copies_of_the_weights(tmp_path: Path) -> None:
    model_directory(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"junk")
    assert safetensors_files(tmp_path) == (tmp_path / "model.safetensors",)


def test_a_tensor_that_two_files_hold_is_refused(tmp_path: Path) -> None:
    model_directory(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is there twice"):
        open_model(tmp_path)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_and_not_opened(tmp_path: Path, pickled: str) -> None:
    model_directory(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / pickled).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="pickled") as refusal:
        open_model(tmp_path)
    assert "safetensors" in refusal.value.expected
    assert "safe_serialization" in refusal.value.remedy
    assert not (tmp_path / "exploded").exists()


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    model_directory(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        open_model(tmp_path)


EMPTY_TENSOR = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def broken_header(content: bytes, header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**63) + bytes(100),
        broken_header(b"", b"{"),
        broken_header(b"", b"[]"),
        broken_header(b"", b'{"a": 3}'),
        broken_header(b"abcd", b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'),
        broken_header(b"abcd", b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 999]}}'),
        broken_header(b"abcd", b'{"a": {"dtype": "WAT", "shape": [1], "data_offsets": [0, 4]}}'),
        broken_header(b"abcd", b'{"a": ["F32", [1], [0, 4]]}'),  # which the safetensors package takes
        broken_header(b"abcd", b'{"__metadata__": {"a": "b", "a": "c"}}'),
        broken_header(b"", b'{"__metadata__": [' + b"{}," * (1 << 20) + b"0]}"),
        broken_header(b"", json.dumps(dict.fromkeys(map(str, range(50_000)), EMPTY_TENSOR)).encode()),
    ],
    ids=[
        *("empty", "short", "zip", "absurd", "no-json", "list", "no-entry", "shape", "offsets", "dtype"),
        *("entry-as-a-list", "key-twice", "many-small-values", "many-empty-tensors"),
    ],
)
def test_a_garbled_safetensors_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    model_directory(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole safetensors file") as refusal:
        open_model(tmp_path)
    assert refusal.value.where == str(tmp_path / "model.safetensors")


def test_a_safetensors_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    model_directory(tmp_path)
    path = tmp_path / "model.safetensors"
    for size in range(path.stat().st_size - 1, 0, -97):
        os.truncate(path, size)
        with pytest.raises(ModelError):
            open_model(tmp_path)


def test_a_file_without_tensors_lacks_every_tensor(tmp_path: Path) -> None:
    model_directory(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        open_model(tmp_path).weights.tensor("final_norm")


def test_a_number_format_that_is_not_read_is_named_and_not_called_missing(tmp_path: Path) -> None:
    model_directory(tmp_path)
    tensors: dict[str, Any] = dict(random_tensors(small_geometry()))
    tensors["model.norm.weight"] = np.ones(16, dtype=np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = open_model(tmp_path).weights
    with pytest.raises(ModelError, match=r"model\.norm\.weight has type I8"):
        weights.vector("final_norm")


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    model_directory(tmp_path)
    tensors = random_tensors(small_geometry())
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    weights = open_model(tmp_path).weights
    assert weights.find("k", 1) is None
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj\.weight is missing") as refusal:
        weights.tensor("k", 1)
    assert refusal.value.where == str(tmp_path)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    model_directory(tmp_path)
    tensors = random_tensors(small_geometry())
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((24, 15), dtype=np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight") as refusal:
        open_model(tmp_path).weights.tensor("up", 0)
    assert "[24, 16]" in refusal.value.expected


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    weights = open_model(model_directory(tmp_path, tie_word_embeddings=True)).weights
    assert weights.tensor("lm_head").name == "model.embed_tokens.weight"


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_model(tmp_path / "none")


def test_a_pickled_file_given_as_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="starts with"):
        open_model(tmp_path / "pytorch_model.bin")


def test_weights_are_mapped_and_not_copied() -> None:
    model: Model = open_model(TINY)
    tensor = model.weights.tensors["model.embed_tokens.weight"]
    assert isinstance(tensor, PlainTensor)
    base = tensor.data
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
