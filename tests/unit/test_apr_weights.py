"""Weights and geometry of .apr files that the real ``apr`` wrote, value by value against what went in."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.structure import geometry_findings
from apr_falsify.compare.weights import weights_findings
from apr_falsify.errors import AprFalsifyError, GeometryError, ModelError, UnknownFamilyError
from apr_falsify.formats.apr import PACKINGS, AprFile, AprTensorInfo
from apr_falsify.formats.tensors import QuantisedTensor
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from tests.checkpoints import make_checkpoint
from tests.support import DATA
from tests.unit.apr_files import apr, made, needs_apr, regrown, tiny_gguf, tiny_llama_gguf, with_tokenizer
from tests.unit.helpers import TINY, roles_of

LLAMA = DATA / "apr-tiny-llama-hf"
Q4K = DATA / "apr-tiny-qwen2"
F32 = npt.NDArray[np.float32]


def values_of(model: Model) -> dict[str, F32]:
    """Return every tensor of a model by the name that it has in HuggingFace's checkpoint."""
    names = family_of(model.geometry).weights
    found = {}
    for role, layer in roles_of(model.geometry):
        tensor = model.weights.tensor(role, layer)
        found[names[role].format(n=layer)] = tensor.rows(0, tensor.shape[0])
    return found


def types_of(model: Model) -> set[str]:
    return {model.weights.tensor(role, layer).type for role, layer in roles_of(model.geometry)}


def checkpoint(directory: Path) -> dict[str, F32]:
    tensors = load_file(directory / "model.safetensors")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def dequantised(path: Path) -> dict[str, F32]:
    """Return every tensor of a GGUF file, decoded by the gguf package alone."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(int(size) for size in tensor.shape)[::-1]
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


def same(ours: dict[str, F32], theirs: dict[str, F32]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apr")


@pytest.fixture(scope="module")
def tiny_apr(folder: Path) -> Path:
    return made(folder / "tiny.apr", "import", TINY)


@pytest.fixture(scope="module")
def q4k_gguf(folder: Path) -> Path:
    return tiny_gguf(folder)


def facts(geometry: Geometry) -> dict[str, object]:
    """Return what must agree; constants are f32 in GGUF, and apr keeps a head of its own for a tied one."""
    found = geometry.to_json()
    del found["tied"]
    return {**found, "norm_eps": float(np.float32(found["norm_eps"]))}


@needs_apr
def test_an_imported_checkpoint_in_f16_holds_every_value_exactly(tiny_apr: Path) -> None:
    model = open_model(tiny_apr)
    assert (model.format, model.files) == ("apr", (tiny_apr,))
    same(values_of(model), checkpoint(TINY))
    assert types_of(model) == {"f16"}
    assert facts(model.geometry) == facts(open_model(TINY).geometry)


def test_a_head_that_is_announced_without_data_is_the_embedding() -> None:
    model, original = open_model(LLAMA / "model.apr"), open_model(LLAMA / "model")
    assert AprFile(LLAMA / "model.apr").tensors["lm_head.weight"].nbytes == 0
    assert model.geometry.tied
    same(values_of(model), checkpoint(LLAMA / "model"))
    assert facts(model.geometry) == facts(original.geometry)
    assert weights_findings(original.weights, model.weights, range(1)) == []


def test_another_tensor_without_data_is_refused(tmp_path: Path) -> None:
    content = (LLAMA / "model.apr").read_bytes()
    path = tmp_path / "x.apr"
    path.write_bytes(content.replace(b"lm_head.weight", b"lm_head.xeight"))
    with pytest.raises(ModelError, match=r"lm_head.xeight has no data"):
        open_model(path)


@needs_apr
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tied_checkpoint_keeps_its_values_in_every_format(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", "qwen3", dtype))
    model, original = open_model(made(tmp_path / "x.apr", "import", folder)), open_model(folder)
    ours, theirs = values_of(model), values_of(original)
    theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
    same({"lm_head.weight": ours["model.embed_tokens.weight"], **ours}, theirs)
    assert types_of(model) == types_of(original)
    assert model.geometry.tied == (dtype is not torch.float32)  # there, apr writes a copy


def test_a_4_bit_file_is_decoded_as_the_gguf_package_decodes_its_gguf() -> None:
    model = open_model(Q4K / "base-q4k.apr")
    ours, names = values_of(model), family_of(model.geometry)
    by_gguf = {gguf_name: names.weights[role] for role, gguf_name in names.gguf_weights.items()}
    theirs = dequantised(Q4K / "base-q4k.gguf")
    for role, layer in roles_of(model.geometry):
        name = names.gguf_weights[role]
        assert np.array_equal(ours[by_gguf[name].format(n=layer)], theirs[name.format(n=layer)])
    assert types_of(model) == {"f32", "q4_k"}
    assert facts(model.geometry) == facts(open_model(Q4K / "base-q4k.gguf").geometry)


KINDS = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q4_K": "q4_k",
    "Q6_K": "q6_k",
    "Q8_0": "f32",
    "Q4_0": "f32",
    "Q5_K": "f32",
}
"""Type in GGUF -> what ``apr import`` makes of it."""


@needs_apr
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_that_apr_imports_is_decoded_as_the_gguf_package_does(
    tmp_path: Path, q4k_gguf: Path, kind: str
) -> None:
    source = regrown(q4k_gguf, tmp_path / "x.gguf", kind)
    model = open_model(made(tmp_path / "x.apr", "import", source))
    row, theirs = family_of(model.geometry), dequantised(source)
    for role, layer in roles_of(model.geometry):
        tensor = model.weights.tensor(role, layer)
        wanted = theirs[row.gguf_weights[role].format(n=layer)]
        assert np.array_equal(tensor.rows(0, tensor.shape[0]), wanted), (role, layer)
        assert np.array_equal(tensor.rows(3, 7), wanted[3:7])
    assert types_of(model) == {"f32", KINDS[kind]}


@needs_apr
@pytest.mark.parametrize(("scheme", "kind", "steps"), [("int8", "apr_q8", 127), ("int4", "apr_q4", 7)])
def test_aprs_own_formats_are_decoded_as_apr_export_decodes_them(
    tmp_path: Path, scheme: str, kind: str, steps: int
) -> None:
    model = open_model(made(tmp_path / "x.apr", "import", TINY, "--quantize", scheme))
    assert types_of(model) == {"f32", kind}
    assert weights_findings(open_model(TINY).weights, model.weights, range(3)) == []
    apr("export", model.path, "-o", tmp_path / "back.safetensors")
    ours, original = values_of(model), checkpoint(TINY)
    same(ours, load_file(tmp_path / "back.safetensors"))
    for name, values in original.items():
        step = np.max(np.abs(values)) / steps  # of the whole tensor: never below that of a block
        assert np.max(np.abs(ours[name] - values)) <= 0.5001 * step


@needs_apr
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_any_rows_are_those_of_the_whole_where_blocks_run_over_their_ends(
    tmp_path: Path, scheme: str
) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", "qwen2"))
    model = open_model(made(tmp_path / "x.apr", "import", folder, "--quantize", scheme))
    apr("export", model.path, "-o", tmp_path / "back.safetensors")
    tensor = model.weights.tensor("down", 1)
    assert tensor.shape == (96, 80)  # 80 is no multiple of 32
    whole = load_file(tmp_path / "back.safetensors")[tensor.name]
    for start, stop in ((0, 96), (1, 2), (7, 30), (95, 96), (96, 96), (90, 200)):
        assert np.array_equal(tensor.rows(start, stop), whole[start:stop])


@needs_apr
def test_rows_that_do_not_fill_a_block_are_filled_up(tmp_path: Path) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", "qwen2"))
    converted = made(tmp_path / "x.apr", "import", folder)
    quantised = made(tmp_path / "q.apr", "convert", converted, "--quantize", "q4k")
    by_tensor = load_file(folder / "model.safetensors")
    file = AprFile(quantised)
    info = file.tensors["model.layers.1.mlp.down_proj.weight"]  # 80 wide: a block of 256 a row
    assert (info.shape, info.type, info.nbytes) == ((96, 80), "q4_k", 96 * 144)
    raw = np.frombuffer(file.data, np.uint8, info.nbytes, info.offset).reshape(96, 144)
    ours = QuantisedTensor(info=info, data=raw).rows(0, 96)
    wanted = by_tensor[info.name]
    assert ours.shape == (96, 80)
    assert np.max(np.abs(ours - wanted)) < 0.15 * np.max(np.abs(wanted))


def test_whole_rows_of_a_vector_in_blocks_end_where_it_ends() -> None:
    blocks = np.zeros(144, np.uint8)
    info = AprTensorInfo(name="v", shape=(200,), packing=PACKINGS[12], offset=0, nbytes=144)
    assert QuantisedTensor(info=info, data=blocks).rows(0, 256).shape == (200,)


def llama_from_gguf(folder: Path, tokenizer: Path, **more: F32) -> Model:
    """Import the tiny Llama from a GGUF as llama.cpp converts it; ``more`` tensors go in as they are."""
    source = tiny_llama_gguf(LLAMA / "model", tokenizer, folder / "x.gguf", **more)
    return open_model(made(folder / "x.apr", "import", source))


@needs_apr
def test_a_llama_from_gguf_is_put_back_into_half_split_pairs(tmp_path: Path, q4k_gguf: Path) -> None:
    original = open_model(LLAMA / "model")
    values = values_of(original)
    model = llama_from_gguf(tmp_path, q4k_gguf)
    assert model.weights.interleaved
    stored = model.weights.tensors["blk.0.attn_q.weight"].rows(0, 64)
    assert not np.array_equal(stored, values["model.layers.0.self_attn.q_proj.weight"])
    ours = values_of(model)
    assert np.array_equal(ours.pop("lm_head.weight"), values["model.embed_tokens.weight"])
    same(ours, values)
    assert facts(model.geometry) == facts(original.geometry)


@needs_apr
def test_rope_divisors_that_came_from_gguf_are_part_of_the_geometry(tmp_path: Path, q4k_gguf: Path) -> None:
    divisors = np.linspace(1, 8, 8).astype(np.float32)
    rope = llama_from_gguf(tmp_path, q4k_gguf, rope_freqs=divisors).geometry.rope
    assert (rope.kind, rope.divisors) == ("divided", tuple(divisors.tolist()))


def test_a_llama_from_a_checkpoint_stays_half_split_whatever_apr_rotates() -> None:
    model = open_model(LLAMA / "model.apr")
    assert not model.weights.interleaved


@needs_apr
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llama-biased-tied-llama3"])
def test_every_family_that_apr_imports_keeps_its_values(tmp_path: Path, name: str) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", name))
    model = open_model(made(tmp_path / "x.apr", "import", folder))
    original = open_model(folder)
    ours, theirs = values_of(model), values_of(original)
    head = ours.pop("lm_head.weight")
    assert np.array_equal(head, theirs.pop("lm_head.weight", theirs["model.embed_tokens.weight"]))
    same(ours, theirs)
    assert weights_findings(original.weights, model.weights, range(3)) == []


@needs_apr
def test_what_apr_metadata_cannot_say_is_a_geometry_finding(tmp_path: Path) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", "qwen2-tied-yarn-window"))
    model = open_model(made(tmp_path / "x.apr", "import", folder))
    findings = geometry_findings(open_model(folder).geometry, model.geometry)
    told = [finding.explanation.split()[0] for finding in findings]
    assert told == ["rope", "windows"]


@needs_apr
def test_heads_that_convert_guessed_are_a_geometry_finding(tmp_path: Path, tiny_apr: Path) -> None:
    model = open_model(made(tmp_path / "x.apr", "convert", tiny_apr, "--quantize", "q4k"))
    findings = geometry_findings(open_model(TINY).geometry, model.geometry)
    assert [finding.explanation for finding in findings] == [
        "heads is 8 in the oracle's model, 4 in the subject's",
        "kv_heads is 2 in the oracle's model, 1 in the subject's",
        "head_dim is 32 in the oracle's model, 64 in the subject's",
    ]


@needs_apr
@pytest.mark.parametrize("scheme", ["int8", "int4", "fp16"])
def test_constants_that_convert_loses_are_named(tmp_path: Path, tiny_apr: Path, scheme: str) -> None:
    converted = made(tmp_path / "x.apr", "convert", tiny_apr, "--quantize", scheme)
    with pytest.raises(GeometryError, match="the metadata has no rope_theta") as caught:
        open_model(converted)
    assert caught.value.where == str(converted)
    assert "apr import" in caught.value.remedy


@needs_apr
def test_a_family_whose_constants_are_not_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = with_tokenizer(make_checkpoint(tmp_path / "hf", "gemma2"))
    with pytest.raises(UnknownFamilyError, match="Gemma 2"):
        open_model(made(tmp_path / "x.apr", "import", folder))


def test_the_file_is_known_by_its_first_bytes_or_its_name(tmp_path: Path) -> None:
    shutil.copy(LLAMA / "model.apr", tmp_path / "model")
    assert open_model(tmp_path / "model").format == "apr"
    (tmp_path / "x.apr").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"starts with b'GGUF'"):
        open_model(tmp_path / "x.apr")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"num_heads":4', b'"num_heads":8', "8 q heads of 16 channels"),
        (b'"num_kv_heads":2', b'"num_kv_heads":1', "1 k heads of 16 channels"),
        (b'"num_layers":1', b'"num_layers":0', "layers is 0"),
        (b'"rope_theta":1', b'"rope_thexx":1', "no rope_theta"),
        (b'"rms_norm_eps"', b'"rms_norm_xxx"', "no rms_norm_eps"),
        (b'"hidden_size":64', b'"hidden_size":"6', ""),
        (b'"architecture":"llama"', b'"architecture":"nonsp"', "not a known model family"),
        (b'"rope_type":0', b'"n_heads":40', "contradicts itself"),
    ],
)
def test_metadata_that_is_wrong_is_refused_by_name(tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    content = (LLAMA / "model.apr").read_bytes()
    assert content.count(old) >= 1
    path = tmp_path / "x.apr"
    path.write_bytes(content.replace(old, new + b" " * (len(old) - len(new)), 1))
    with pytest.raises(AprFalsifyError) as caught:
        open_model(path)
    assert says in caught.value.what
    assert caught.value.where == str(path)


@needs_apr
@pytest.mark.parametrize("arguments", [(), ("--quantize", "int8"), ("--quantize", "int4")])
def test_a_tensor_that_is_not_the_checkpoints_is_a_finding_at_its_stage(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    folder = shutil.copytree(TINY, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][5] *= np.float16(-1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(made(tmp_path / "x.apr", "import", folder, *arguments))
    (finding,) = weights_findings(open_model(TINY).weights, model.weights, range(3))
    assert (finding.layer, finding.stages) == (1, ("qkv_matmul",))
    assert "v of layer 1" in finding.explanation


@given(at=st.integers(8, 6271), value=st.integers(0, 255))
def test_any_byte_before_the_data_is_refused_by_name_or_the_model_is_whole(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    content = bytearray((LLAMA / "model.apr").read_bytes())
    content[at] = value
    content[40:44] = zlib.crc32(bytes(content[:40] + content[44:64])).to_bytes(4, "little")
    path = tmp_path_factory.mktemp("changed") / "x.apr"
    path.write_bytes(bytes(content))
    refusal = refused(path)
    assert refusal is None or refusal.where == str(path)


def refused(path: Path) -> AprFalsifyError | None:
    """Read every weight of a model; return why it was refused."""
    try:
        values_of(open_model(path))
    except AprFalsifyError as error:
        return error
    return None
