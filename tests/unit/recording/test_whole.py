"""A recording that is finished is whole and stays as it is, whatever its caller caught, shared or changed."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apr_falsify as af
from apr_falsify.commands.wired import every_stage, wired_mapping
from apr_falsify.errors import UndecidedError
from apr_falsify.formats.safetensors_writer import SafetensorsWriter
from apr_falsify.formats.weights import open_model
from apr_falsify.subjects.dump_names import check_one_pass
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.recording_json import read_facts
from tests.unit.helpers import TINY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_arrays_in_memory_stay_when_the_tensors_change_after_the_block(mode: Any, dtype: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Identity())
    with mode():
        x = torch.randn(3, 4).to(dtype)
        with af.record(model=module, tokens=[1]) as rec:
            out = module(x)
        wanted = out.float().numpy().copy()
        out.zero_()
    np.testing.assert_array_equal(rec.arrays["0.input"], wanted)


def test_several_threads_record_at_a_time(tmp_path: Path) -> None:
    with af.record(tmp_path / "run", tokens=[1]) as rec:

        def some(first: int) -> None:
            for number in range(first, first + 300):
                rec(f"a{number}", np.full(number % 7 + 1, number, np.float32))

        threads = [threading.Thread(target=some, args=(300 * part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    dump = read_dump(tmp_path / "run")
    assert len(dump) == 1200
    for name, array in dump.items():
        number = int(name[1:])
        np.testing.assert_array_equal(array.load(), np.full(number % 7 + 1, number))


def test_a_name_of_the_format_itself_is_refused(tmp_path: Path) -> None:
    with af.record(tmp_path / "run", tokens=[1]) as rec:
        with pytest.raises(af.AprFalsifyError, match="no name for an array: '__metadata__'"):
            rec("__metadata__", np.ones(2))
        rec("a", np.ones(2))
    assert list(read_dump(tmp_path / "run")) == ["a"]


class Metadata(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("__metadata__", torch.nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("__metadata__")(x)


def test_a_module_of_that_name_is_recorded_under_another(tmp_path: Path) -> None:
    module = Metadata()
    with torch.no_grad(), af.record(tmp_path / "run", model=module, tokens=[1]):
        module(torch.ones(1, 2))
    assert list(read_dump(tmp_path / "run")) == ["__metadata__.input", "__metadata__#2"]


def test_a_refusal_that_is_caught_leaves_the_name_free(tmp_path: Path) -> None:
    with af.record(tmp_path / "run", tokens=[1]) as rec:
        with pytest.raises(af.AprFalsifyError, match="no array of plain numbers"):
            rec("a", "text")
        rec("a", np.ones(3))
    np.testing.assert_array_equal(read_dump(tmp_path / "run")["a"].load(), np.ones(3))


def _refused(rec: af.Recorder) -> None:
    with pytest.raises(af.AprFalsifyError, match="no array of plain numbers"):
        rec("a", "text")


def _no_space(self: SafetensorsWriter, name: str, array: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _disk_full_once(rec: af.Recorder) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SafetensorsWriter, "add", _no_space)
        with pytest.raises(af.AprFalsifyError, match="No space left"):
            rec("a", np.ones(3))
    rec("b", np.ones(3))


@pytest.mark.parametrize(
    ("do", "said"), [(_refused, "nothing was recorded"), (_disk_full_once, "No space left")]
)
def test_an_error_that_is_caught_leaves_no_recording_that_is_not_whole(
    do: Callable[[af.Recorder], None], said: str, tmp_path: Path
) -> None:
    with pytest.raises(af.AprFalsifyError, match=said), af.record(tmp_path / "run", tokens=[1]) as rec:
        do(rec)
    assert list(tmp_path.iterdir()) == []


FREE_NAMES = {
    "ranks-of-lora": ("lora_rank_8", "lora_rank_16"),
    "passes-of-a-layer": ("h0_pass_1", "h0_pass_2"),
    "steps-of-a-module": ("model.low_step_1", "model.low_step_2"),
    "kernels": ("kernel_cuda_0", "kernel_cuda_1"),
}


@pytest.mark.parametrize("case", FREE_NAMES)
def test_words_within_a_name_are_no_ranks_and_no_steps(case: str, tmp_path: Path) -> None:
    check_one_pass(FREE_NAMES[case], tmp_path)


def test_names_of_a_recording_are_free_and_those_of_a_dump_are_read(tmp_path: Path) -> None:
    names = ("rank_8", "rank_16")
    with pytest.raises(UndecidedError, match="several ranks"):
        check_one_pass(names, tmp_path)
    with af.record(tmp_path / "run", tokens=[1, 2]) as rec:
        for name in names:
            rec(name, np.ones((2, 3), np.float32))
    path = tmp_path / "run"
    model = open_model(TINY)
    oracle = every_stage(model, (1, 2), dtype="f32", device="cpu")
    with pytest.raises(af.AprFalsifyError) as caught:
        wired_mapping(path, read_dump(path), oracle, model.weights, tokens_from=None)
    assert not isinstance(caught.value, UndecidedError)


@pytest.mark.parametrize(
    "tokens",
    [5, np.int64(3), torch.tensor(5), 2.5, [True], np.array([True]), [torch.tensor(True)], [2**70], [2**31],
     "12", b"ab", ["12"], torch.ones(2, device="meta"), [[[1, 2]]], [[]], NotImplemented],
    ids=str,
)  # fmt: skip
def test_what_is_no_sequence_of_ids_is_a_typed_error(tokens: Any) -> None:
    with pytest.raises(af.AprFalsifyError, match="not token ids") as caught:
        af.record(tokens=tokens)
    assert caught.value.where == "tokens"


@pytest.mark.parametrize(
    "tokens",
    [(1, 2), ((1, 2),), [(1, 2)], [np.array([1, 2])], torch.tensor([[1, 2]]), [np.int64(1), torch.tensor(2)]],
    ids=str,
)
def test_one_sequence_is_taken_in_any_form(tokens: Any, tmp_path: Path) -> None:
    with af.record(tmp_path / "run", tokens=tokens) as rec:
        rec("a", np.ones(2))
    facts = read_facts(tmp_path / "run")
    assert facts is not None
    assert facts.tokens == (1, 2)
