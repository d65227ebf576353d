"""Files as torch, ONNX and serving programs leave them are read as they lie, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr_falsify.errors import AprFalsifyError, TraceError, UndecidedError
from apr_falsify.subjects.dump_names import check_one_pass
from apr_falsify.subjects.dumps import holds_arrays, read_dump

KINDS = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


def saved(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def test_tensors_of_every_format_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    given = {str(dtype): torch.arange(-6, 6).reshape(3, 4).to(dtype) for dtype in KINDS}
    dump = read_dump(saved(tmp_path / "run.pt", given))
    for dtype, kind in KINDS.items():
        array, tensor = dump[str(dtype)], given[str(dtype)]
        assert (array.kind, array.shape) == (kind, (3, 4))
        bits = tensor.view(torch.int16).numpy().view("<u2") if kind == "bf16" else tensor.numpy()
        np.testing.assert_array_equal(array.load().reshape(bits.shape), bits)


def test_structures_strides_and_shared_storages_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    given = OrderedDict(
        turned=whole.T,
        part=whole[1:3, 2:5],
        repeated=torch.tensor([1.0, 2.0]).expand(3, 2),
        parameter=torch.nn.Parameter(whole),
        nothing=torch.zeros(0, 3),
        layers=[{"q": whole + 1}, (whole + 2, None, "text", 3)],
        single=torch.tensor(5.0),
    )
    given._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]  # as a state_dict has it
    dump = read_dump(saved(tmp_path / "run.pt", given))
    wanted = {
        "turned": whole.T,
        "part": whole[1:3, 2:5],
        "repeated": torch.tensor([[1.0, 2.0]] * 3),
        "parameter": whole,
        "nothing": torch.zeros(0, 3),
        "layers.0.q": whole + 1,
        "layers.1.0": whole + 2,
        "single": torch.tensor(5.0),
    }
    assert dump.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(dump[name].load().reshape(tensor.shape), tensor.numpy())


def rewritten(path: Path, change: Any) -> Path:
    """Write an archive of torch again, its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def test_tensors_that_lay_on_cuda_are_read_without_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.pt", {"q": torch.arange(3.0)})
    rewritten(path, lambda content: content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in path.read_bytes()
    np.testing.assert_array_equal(read_dump(path)["q"].load(), [0, 1, 2])


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.pt", {"q": torch.ones(2), "evil": Evil(tmp_path / "was-here")})
    with pytest.raises(TraceError, match=r"mkdir: loading it could run any code") as caught:
        read_dump(path)
    assert caught.value.where == str(path)
    assert "torch.save" in caught.value.remedy
    assert not (tmp_path / "was-here").exists()


def test_no_pickle_changes_what_stands_for_its_classes(tmp_path: Path) -> None:
    from apr_falsify.subjects import torch_files

    attack = b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x05\x00\x00\x00namedK\x01s\x86b."
    path = rewritten(saved(tmp_path / "run.pt", {"q": torch.ones(2)}), lambda content: attack)
    with pytest.raises(AprFalsifyError, match="no arrays"):
        read_dump(path)
    assert not hasattr(torch_files._parameter, "named")


def _laughs() -> bytes:
    found = b"\x80\x02]q\x00"
    for level in range(1, 12):
        found += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"eq" + bytes([level])
    return found + b"."


BROKEN: dict[str, Any] = {
    "a-text": lambda path: path.write_text("no archive"),
    "before-1.6": lambda path: torch.save({"q": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
    "no-pickle": lambda path: zipfile.ZipFile(path, "w").writestr("a/b", "c"),
    "cut-off": lambda path: (
        saved(path, {"q": torch.ones(900)}),
        path.write_bytes(path.read_bytes()[:2000]),
    ),
    "not-a-pickle": lambda path: rewritten(saved(path, {"q": torch.ones(2)}), lambda content: b"\xff\xff"),
    "many-laughs": lambda path: rewritten(saved(path, {"q": torch.ones(2)}), lambda content: _laughs()),
    "beyond-its-storage": lambda path: rewritten(
        saved(path, {"q": torch.ones(2)}), lambda content: content.replace(b"K\x02\x85", b"K\x63\x85")
    ),
    "outside": lambda path: rewritten(
        saved(path, {}), lambda content: b"\x80\x02" + pickle.dumps("elsewhere", 2)[2:-1] + b"Q."
    ),
    "nothing": lambda path: saved(path, {"step": 3}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_whole_is_a_typed_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    BROKEN[case](path)
    with pytest.raises(TraceError) as caught:
        read_dump(path)
    assert str(path) in str(caught.value)
    assert caught.value.expected


def test_a_folder_of_a_tensor_a_file_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("model.embed_tokens/outputs_cuda_0", "model.layers.0.mlp/inputs_0_cuda_0"):
        saved(tmp_path / "step_0" / f"{name}.pt", torch.full((2, 3), len(name)))
        (tmp_path / "step_0" / name).with_suffix(".json").write_text("{}")
    assert holds_arrays(tmp_path)
    dump = read_dump(tmp_path)
    assert set(dump) == {
        "step_0/model.embed_tokens/outputs_cuda_0",
        "step_0/model.layers.0.mlp/inputs_0_cuda_0",
    }
    check_one_pass(dump, tmp_path)


def test_a_folder_of_one_dict_a_pass_is_read_with_their_keys(tmp_path: Path) -> None:
    saved(tmp_path / "TP0_PP0_Rank0_pid17" / "Pass00000.pt", {"model.norm": torch.ones(2)})
    assert list(read_dump(tmp_path)) == ["TP0_PP0_Rank0_pid17/Pass00000.model.norm"]


SEVERAL = {
    "vllm-steps": ("steps", "step_0/model.norm/outputs_cuda_0", "step_1/model.norm/outputs_cuda_0"),
    "vllm-devices": ("ranks", "step_0/model.norm/outputs_cuda_0", "step_0/model.norm/outputs_cuda_1"),
    "msprobe-steps": (
        "steps",
        "step0/rank/dump_tensor_data/Module.norm.RMSNorm.forward.0.output.0",
        "step1/rank/dump_tensor_data/Module.norm.RMSNorm.forward.0.output.0",
    ),
    "msprobe-ranks": ("ranks", "step0/rank0/dump_tensor_data/a", "step0/rank7/dump_tensor_data/a"),
    "sglang-passes": ("steps", "TP0_PP0_Rank0_pid17/Pass00000.a", "TP0_PP0_Rank0_pid17/Pass00001.a"),
    "sglang-ranks": ("ranks", "TP0_PP0_Rank0_pid17/Pass00000.a", "TP1_PP0_Rank1_pid18/Pass00000.a"),
    "sglang-dumper": ("steps", "forward_pass_id=1___rank=0___name=q", "forward_pass_id=2___rank=0___name=q"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_passes_or_ranks_are_never_taken_for_one_run(case: str, tmp_path: Path) -> None:
    what, *names = SEVERAL[case]
    with pytest.raises(UndecidedError, match=f"of several {what}") as caught:
        check_one_pass(names, tmp_path)
    assert caught.value.exit_code == 4


def test_names_of_layers_and_modules_are_no_passes_or_ranks() -> None:
    check_one_pass(
        ["layers.0.q", "layers.1.q", "h/1/silu_3", "h/2/silu_4", "conv_1/step", "low_rank.2"], Path()
    )


def _field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return bytes([number << 3]) + _varint(content)
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


TENSORS: dict[str, tuple[bytes, str, list[float]]] = {
    "raw": (_field(2, 1) + _field(9, struct.pack("<2f", 1.5, -2)), "f32", [1.5, -2]),
    "floats": (_field(2, 1) + _field(4, struct.pack("<2f", 1.5, -2)), "f32", [1.5, -2]),
    "doubles": (_field(2, 11) + _field(10, struct.pack("<2d", 1.5, -2)), "f64", [1.5, -2]),
    "halves": (_field(2, 10) + _field(5, _varint(0x3E00) + _varint(0xC000)), "f16", [1.5, -2]),
    "bf16": (_field(2, 16) + _field(5, _varint(0x3FC0) + _varint(0xC000)), "bf16", [0x3FC0, 0xC000]),
    "ids": (_field(2, 7) + _field(7, 300) + _field(7, (1 << 64) - 1), "i64", [300, -1]),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_of_onnx_is_read_in_each_way_in_which_values_may_stand(case: str, tmp_path: Path) -> None:
    content, kind, wanted = TENSORS[case]
    (tmp_path / "output_0.pb").write_bytes(_field(1, _varint(2) + _varint(1)) + content + _field(8, b"q/rot"))
    (array,) = read_dump(tmp_path / "output_0.pb").values()
    assert (array.name, array.kind, array.shape) == ("q/rot", kind, (2, 1))
    np.testing.assert_array_equal(array.load(), wanted)


def test_a_folder_of_onnx_tensors_without_names_is_named_by_its_files(tmp_path: Path) -> None:
    for number in range(2):
        content = _field(1, 1) + _field(2, 1) + _field(9, struct.pack("<f", number))
        (tmp_path / f"output_{number}.pb").write_bytes(content)
    dump = read_dump(tmp_path)
    assert [(name, float(array.load()[0])) for name, array in dump.items()] == [
        ("output_0", 0),
        ("output_1", 1),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        _field(1, 2) + _field(2, 1) + _field(9, b"1234"),
        _field(1, 1) + _field(2, 1) + _field(14, 1),
        _field(1, (1 << 64) - 1) + _field(2, 1),
        b"\x4a\x7f1",
        b"\x03",
    ],
)
def test_a_tensor_of_onnx_that_is_not_whole_is_a_typed_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "output_0.pb").write_bytes(content)
    with pytest.raises(TraceError, match="output_0"):
        read_dump(tmp_path / "output_0.pb")
