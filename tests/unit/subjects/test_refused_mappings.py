"""A mapping file that cannot be meant, and a recording that it does not fit, are refused by name."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.errors import AprFalsifyError, TraceError
from apr_falsify.subjects.recorded import open_recorded
from tests.unit.subjects.dumps import apr_trace, dump_of, plain_mapping, target, write

Said = dict[str, Any]
Edit = Callable[[Said], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound recording in three forms."""
    folder = tmp_path_factory.mktemp("sound")
    trace = apr_trace()
    for form in ("npz", "safetensors", "npy"):
        write(folder / form, dump_of(trace), plain_mapping(trace), form)
    return folder


def stage(name: str, **entry: Any) -> Edit:
    return lambda said: said["stages"].__setitem__(name, {**said["stages"].get(name, {}), **entry})


def key(name: str, value: Any) -> Edit:
    return lambda said: said.__setitem__(name, value)


# Defect -> how it is made, and what the message must say.
DEFECTS: Mapping[str, tuple[Edit, tuple[str, ...]]] = {
    "unknown-key": (key("runtme", "x"), ("unknown key 'runtme'", "did you mean 'runtime'")),
    "no-runtime": (lambda said: said.pop("runtime"), ("names no runtime",)),
    "no-schema": (lambda said: said.pop("schema"), ("the schema is None", "apr-falsify/mapping/v1")),
    "newer-schema": (key("schema", "apr-falsify/mapping/v2"), ("mapping/v2", "mapping/v1")),
    "no-stages": (key("stages", {}), ("names no stage",)),
    "unknown-stage": (stage("attn_score", **{"from": "x"}), ("attn_score", "did you mean 'attn_scores'")),
    "stage-twice-by-its-alias": (stage("layer_output", **{"from": "x"}), ("layer_output", "already")),
    "unknown-key-of-a-stage": (stage("attn_norm", axis=[]), ("stages.attn_norm", "'axis'", "'axes'")),
    "no-array-of-that-name": (
        stage("attn_norm", **{"from": "L{layer}.attn_nrom"}),
        ("stages.attn_norm.from", "'L0.attn_nrom'", "did you mean 'L0.attn_norm'"),
    ),
    "one-array-for-two-stages": (
        stage("ffn_norm", **{"from": "L{layer}.attn_norm"}),
        ("'L{layer}.attn_norm'", "attn_norm too"),
    ),
    "one-array-for-two-stages-by-other-patterns": (
        stage("ffn_norm", **{"from": "L{layer:01}.attn_norm"}),
        ("'L0.attn_norm' is attn_norm and ffn_norm",),
    ),
    "two-names-for-one-stage": (stage("attn_norm", **{"from": ["a", "b"]}), ("2 names", "one name")),
    "two-names-for-q-k-and-v": (stage("qkv_bias", **{"from": ["a", "b"]}), ("2 names", "q, k and v")),
    "no-name": (stage("attn_norm", **{"from": None}), ("stages.attn_norm.from",)),
    "another-field": (stage("attn_norm", **{"from": "{n}.x"}), ("'{n}.x'", "{layer}")),
    "no-layer-in-the-name": (
        stage("attn_norm", **{"from": "L0.attn_norm"}),
        ("names no layer", "`layer: N`"),
    ),
    "layer-of-a-whole-model-stage": (
        stage("final_norm", **{"from": "L{layer}.final_norm"}),
        ("final_norm exists once",),
    ),
    "layer-said-twice": (stage("attn_norm", axes=["layers", "tokens", "hidden"]), ("one of the two",)),
    "a-layer-that-the-model-has-not": (
        lambda said: (
            key("layer", 3)(said),
            said["stages"].clear(),
            stage("ffn_up", **{"from": "L0.ffn_up"})(said),
        ),
        ("layer 3 of a model of 3",),
    ),
    "negative-layer": (key("layer", -1), ("layer is -1",)),
    "unknown-axis": (stage("attn_norm", axes=["tokens", "hiden"]), ("'hiden'", "did you mean 'hidden'")),
    "axes-of-another-stage": (stage("attn_norm", axes=["tokens", "ffn"]), ("cannot be attn_norm",)),
    "an-axis-missing": (stage("attn_scores", axes=["heads", "keys"]), ("cannot be attn_scores", "keys]")),
    "tokens-twice": (stage("attn_scores", axes=["heads", "tokens", "tokens"]), ("cannot be attn_scores",)),
    "query-heads-in-k": (
        stage("k_post_rope", axes=["heads", "tokens", "head_dim"]),
        ("cannot be k_post_rope", "kv_heads"),
    ),
    "shape": (
        stage("q_post_rope", axes=["heads", "tokens", "head_dim"]),
        ("'L0.q_post_rope' has the shape [6, 256]", "[8, 6, 32]"),
    ),
    "order-of-axes": (stage("ffn_up", axes=["ffn", "tokens"]), ("[6, 512]", "[512, 6]")),
    "unknown-word": (stage("attn_scores", layout=["unscald"]), ("'unscald'", "did you mean 'unscaled'")),
    "a-word-that-says-nothing": (stage("ffn_up", layout=["interleaved"]), ("says nothing of ffn_up",)),
    "word-twice": (stage("attn_scores", layout=["unscaled", "unscaled"]), ("unscaled is there twice",)),
    "word-and-axes": (
        stage("q_post_rope", axes=["heads", "tokens", "head_dim"], layout=["head-major"]),
        ("head-major is said by its axes",),
    ),
    "another-number-format": (stage("ffn_up", dtype="f16"), ("'L0.ffn_up' holds f32", "f16, as the mapping")),
    "unknown-number-format": (stage("ffn_up", dtype="f8"), ("'f8'", "f16, bf16")),
    "unknown-run-format": (key("dtype", "half"), ("'half'", "f16, bf16")),
    "unknown-arithmetic": (key("arithmetic", "q8_1 blocks"), ("unknown arithmetic", "q8_1 blocks of 32")),
    "version-is-a-number": (key("version", 1.1), ("version is 1.1, not a text",)),
    "no-tokens": (key("tokens", []), ("tokens is empty",)),
    "tokens-of-words": (key("tokens", ["What"]), ("one of tokens is 'What'",)),
    "tokens-of-no-array": (key("tokens", "idz"), ("tokens: there is no array 'idz'",)),
    "tokens-of-floats": (key("tokens", "L0.ffn_up"), ("'L0.ffn_up' holds no token ids",)),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_wrong_mapping_is_refused(sound: Path, tmp_path: Path, defect: str) -> None:
    edit, said = DEFECTS[defect]
    mapping = plain_mapping(apr_trace())
    edit(mapping)
    path = write(tmp_path, {}, mapping)
    shutil.copy(sound / "npz" / "dump.npz", path)
    with pytest.raises(AprFalsifyError) as raised:
        open_recorded(target(path))
    for words in said:
        assert words in str(raised.value)
    assert str(tmp_path) in str(raised.value)


TEXTS: Mapping[str, tuple[str, str]] = {
    "duplicate-key": (
        "schema: apr-falsify/mapping/v1\nruntime: a\nruntime: b\n",
        "line 3: the key 'runtime' is there twice",
    ),
    "list": ("- 1\n", "not an object"),
    "empty": ("", "not an object"),
    "no-yaml": ("a: [1,", "no YAML"),
    "object": ("!!python/name:os.system", "no YAML"),
}


@pytest.mark.parametrize("defect", TEXTS)
def test_a_mapping_that_is_no_mapping_is_refused(sound: Path, tmp_path: Path, defect: str) -> None:
    text, said = TEXTS[defect]
    path = write(tmp_path, {}, text)
    shutil.copy(sound / "npz" / "dump.npz", path)
    with pytest.raises(TraceError, match=r"MAPPING\.yaml") as raised:
        open_recorded(target(path))
    assert said in str(raised.value)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - size)


def longer(folder: Path) -> None:
    with (folder / "L0.ffn_up.npy").open("ab") as file:
        file.write(b"x")


def pickled(folder: Path) -> None:
    np.save(folder / "L0.ffn_up.npy", np.array([{}], dtype=object), allow_pickle=True)


def pickled_in_npz(folder: Path) -> None:
    np.savez(folder / "dump.npz", x=np.array([{}], dtype=object), allow_pickle=True)


def twice_in_npz(folder: Path) -> None:
    with zipfile.ZipFile(folder / "dump.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("L0.ffn_up.npy", archive.read("L0.ffn_up.npy"))


def flipped_in_npz(folder: Path) -> None:
    data = bytearray((folder / "dump.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "dump.npz").write_bytes(data)


def text_in_npz(folder: Path) -> None:
    with zipfile.ZipFile(folder / "dump.npz", "a") as archive:
        archive.writestr("notes.txt", "x")


def linked_out(folder: Path) -> None:
    shutil.move(folder / "L0.ffn_up.npy", folder.parent / "outside.npy")
    (folder / "L0.ffn_up.npy").symlink_to(folder.parent / "outside.npy")


def twice_in_safetensors(folder: Path) -> None:
    path = folder / "dump.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"L0.ffn_up"', b'"L1.ffn_up"')
    path.write_bytes(data[:8] + header + data[8 + length :])


def more_layers(folder: Path) -> None:
    shutil.copy(folder / "L0.ffn_up.npy", folder / "L3.ffn_up.npy")


def emptied(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.unlink()


def other_kind(folder: Path) -> None:
    np.save(folder / "L0.ffn_up.npy", np.zeros((6, 512), dtype=np.complex64))


def beyond_f32(folder: Path) -> None:
    np.save(folder / "L0.ffn_up.npy", np.full((6, 512), 1e300))


def half_numbers(folder: Path) -> None:
    np.save(folder / "L0.ffn_up.npy", np.zeros((6, 512), dtype=np.uint16))


BROKEN: Mapping[str, tuple[str, Callable[[Path], object], str]] = {
    "npz-cut-off": ("npz", cut("dump.npz", 100), "cannot be read"),
    "npz-flipped-bit": ("npz", flipped_in_npz, "cannot be read"),
    "npz-pickled": ("npz", pickled_in_npz, "pickled"),
    "npz-name-twice": ("npz", twice_in_npz, "'L0.ffn_up' is there twice"),
    "npz-with-a-text": ("npz", text_in_npz, "'notes.txt' in it is no array"),
    "npz-empty-file": ("npz", lambda folder: (folder / "dump.npz").write_bytes(b""), "cannot be read"),
    "npy-cut-off": ("npy", cut("L0.ffn_up.npy", 4), "announces"),
    "npy-without-header": ("npy", cut("L0.ffn_up.npy", 12_400), "cannot be read"),
    "npy-with-more": ("npy", longer, "announces"),
    "npy-pickled": ("npy", pickled, "pickled"),
    "npy-link-out": ("npy", linked_out, "leads out"),
    "npy-none": ("npy", emptied, "at least one .npy, .pt or .pb file"),
    "npy-complex": ("npy", other_kind, "'L0.ffn_up' holds complex64"),
    "npy-beyond-f32": ("npy", beyond_f32, "beyond the range of f32"),
    "npy-whole-numbers": ("npy", half_numbers, "dtype: bf16, where these are its bits"),
    "npy-of-more-layers": ("npy", more_layers, "'L3.ffn_up' is ffn_up of layer 3"),
    "safetensors-cut-off": ("safetensors", cut("dump.safetensors", 100), "not a whole safetensors file"),
    "safetensors-name-twice": ("safetensors", twice_in_safetensors, "not a whole safetensors file"),
    "safetensors-garbage": (
        "safetensors",
        lambda folder: (folder / "dump.safetensors").write_bytes(b"garbage!" * 9),
        "safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_recording_is_refused(sound: Path, tmp_path: Path, defect: str) -> None:
    form, breaks, said = BROKEN[defect]
    folder = Path(shutil.copytree(sound / form, tmp_path / form))
    breaks(folder)
    path = folder if form == "npy" else folder / f"dump.{form}"
    with pytest.raises(AprFalsifyError) as raised:
        open_recorded(target(path))
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_format_that_is_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MAPPING.yaml").write_text("schema: x\n")
    (tmp_path / "dump.h5").write_bytes(pickle.dumps({}))
    with pytest.raises(TraceError, match="not a file of arrays") as raised:
        open_recorded(target(tmp_path / "dump.h5"))
    assert ".safetensors" in raised.value.expected


def test_a_recording_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"dump\.npz"):
        open_recorded(target(tmp_path / "dump.npz", mapping=str(tmp_path / "none.yaml")))
