"""Odd tensors in files of torch and ONNX: passed over with the reason, or refused; never other values."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr_falsify.errors import TraceError
from apr_falsify.subjects.dumps import read_dump
from tests.unit.subjects.test_dumps_as_they_lie import _field, _varint, rewritten, saved


def _quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop them; files of them stay
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


def _by_channel() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 0])
        return torch.quantize_per_channel(torch.ones(2, 2), scales, zeros, 0, torch.quint8)


UNREAD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "quantised": (_quantised, "quantised"),
    "by-channel": (_by_channel, "quantised"),
    "negated": (lambda: torch.imag(torch.ones(2, dtype=torch.complex64).conj()), "negated"),
    "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
    "meta": (lambda: torch.ones(2, device="meta"), "without values"),
    "8-bit-floats": (lambda: torch.ones(2).to(torch.float8_e4m3fn), "8-bit floats"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "sparse"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_tensor_that_is_not_read_is_passed_over_and_named_where_nothing_is_left(
    case: str, tmp_path: Path
) -> None:
    make, said = UNREAD[case]
    value = make()
    alone = saved(tmp_path / "run" / "alone.pt", {"of_layer": {"q": value}})
    for path in (alone, alone.parent):
        with pytest.raises(TraceError, match=rf"no arrays that are read here: 'of_layer\.q' is .*{said}"):
            read_dump(path)
    with_others = saved(tmp_path / "others.pt", {"q": value, "k": torch.arange(3.0)})
    dump = read_dump(with_others)
    np.testing.assert_array_equal(dump["k"].load(), [0, 1, 2])
    assert list(dump) == ["k"]


HARMLESS: dict[str, tuple[Callable[[], Any], str]] = {
    "defaultdict": (lambda: defaultdict(list, q=torch.ones(2)), "collections.defaultdict"),
    "numpy-scalar": (lambda: {"q": torch.ones(2), "loss": np.float32(1)}, "multiarray.scalar"),
    "return-type": (lambda: {"q": torch.ones(2).sort()}, "torch.return_types.sort"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_name_that_means_no_harm_is_refused_without_alarm(case: str, tmp_path: Path) -> None:
    make, name = HARMLESS[case]
    said = rf"names \S*{re.escape(name)}, which is not read here; nothing of it was run"
    with pytest.raises(TraceError, match=said):
        read_dump(saved(tmp_path / "run.pt", make()))


def test_keys_may_be_numbers_and_rows_of_them(tmp_path: Path) -> None:
    given = {(0, "q"): torch.ones(1), 7: torch.ones(2), None: torch.ones(3), "k": torch.ones(4)}
    dump = read_dump(saved(tmp_path / "run.pt", given))
    assert {name: array.shape for name, array in dump.items()} == {
        "(0, 'q')": (1,),
        "7": (2,),
        "None": (3,),
        "k": (4,),
    }


def _nested(levels: int) -> bytes:
    """Return the steps that leave a pair of a pair of a pair, whose halves are the same."""
    return b"".join(b"K\x00K\x00\x86" if not level else b"2\x86" for level in range(levels))


KEYS = {
    "set-one": b"}" + _nested(200) + b"K\x01s.",
    "set-several": b"}(" + _nested(200) + b"K\x01u.",
    "made-at-once": b"(" + _nested(200) + b"K\x01d.",
    "ordered": b"ccollections\nOrderedDict\n](" + _nested(200) + b"K\x01\x86e\x85R.",
    "set": b"\x8f(" + _nested(200) + b"\x90.",
    "frozen": b"(" + _nested(200) + b"\x91.",
    "of-a-device": b"(X\x07\x00\x00\x00storagectorch\ndevice\n"
    + _nested(200)
    + b"\x85RX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_of_tuples_in_tuples_is_refused_at_once(case: str, tmp_path: Path) -> None:
    """Its 200 levels would be looked up without end: Python keeps no hash of a tuple."""
    path = rewritten(saved(tmp_path / "run.pt", {}), lambda content: b"\x80\x04" + KEYS[case])
    said = {"set": "a set", "frozen": "a set", "of-a-device": "a storage without"}
    with pytest.raises(TraceError, match=said.get(case, "a key that is neither text nor a number")):
        read_dump(path)


SIZES = ((0, 1 << 62), (1 << 40, 0, 1 << 40), (1,) * 70)


@pytest.mark.parametrize("shape", SIZES)
def test_sizes_that_no_array_has_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    def change(content: bytes) -> bytes:
        sizes = pickle.dumps(shape, 2)[2:-1]
        steps = pickle.dumps((1,) * len(shape), 2)[2:-1]
        changed = content.replace(b"K\x02\x85", sizes, 1).replace(b"K\x01\x85", steps, 1)
        assert changed != content
        return changed

    path = rewritten(saved(tmp_path / "run.pt", {"q": torch.ones(2)}), change)
    with pytest.raises(TraceError, match="which no array has"):
        read_dump(path)
    sizes = b"".join(_field(1, size) for size in shape)
    (tmp_path / "q.pb").write_bytes(sizes + _field(2, 1) + _field(9, b"1234" if 0 not in shape else b""))
    with pytest.raises(TraceError, match="which no array has"):
        read_dump(tmp_path / "q.pb")


def _wired(number: int, wire: int, content: bytes) -> bytes:
    return bytes([number << 3 | wire]) + content


ONE = _field(1, 1)
BROKEN = {
    "a-number-for-raw-data": ONE + _field(2, 1) + _field(9, 5),
    "a-number-for-the-name": ONE + _field(2, 1) + _field(9, b"1234") + _field(8, 5),
    "a-number-for-floats": ONE + _field(2, 1) + _field(4, 5),
    "a-float-for-a-size": _wired(1, 5, b"1234") + _field(2, 1) + _field(9, b"1234"),
    "bytes-for-the-type": ONE + _field(2, b"1") + _field(9, b"1234"),
    "a-double-for-floats": ONE + _field(2, 1) + _wired(4, 1, b"12345678"),
    "beyond-8-bits": ONE + _field(2, 3) + _field(5, 300),
    "beyond-32-bits": ONE + _field(2, 6) + _field(5, _varint(1 << 40)),
    "a-half-below-0": ONE + _field(2, 10) + _field(5, (1 << 64) - 1),
    "floats-for-whole-numbers": ONE + _field(2, 6) + _field(4, struct.pack("<f", 1)),
    "no-text-for-the-name": ONE + _field(2, 1) + _field(9, b"1234") + _field(8, b"\xff"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tensor_of_onnx_that_protobuf_would_not_write_is_a_typed_error(case: str, tmp_path: Path) -> None:
    (tmp_path / "q.pb").write_bytes(BROKEN[case])
    for path in (tmp_path / "q.pb", tmp_path):
        with pytest.raises(TraceError, match=r"q\.pb"):
            read_dump(path)


def test_values_of_onnx_are_read_when_they_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "q.pb"
    file.write_bytes(ONE + _field(2, 1) + _field(9, struct.pack("<f", 1.5)))
    array = read_dump(file)["q"]
    file.write_bytes(ONE + _field(2, 1) + _field(9, struct.pack("<f", 2.5)))
    np.testing.assert_array_equal(array.load(), [2.5])
    file.write_bytes(_field(1, 2) + _field(2, 1) + _field(9, struct.pack("<2f", 1, 2)))
    with pytest.raises(TraceError, match="changed while it was read"):
        array.load()
