"""A recording holds what a module computed, whole or not at all, and changes nothing of it."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import apr_falsify as af
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.recording_json import read_facts
from tests.unit.helpers import TINY

IDS = [274, 272, 223, 20, 13, 20, 33]
Port: Any = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "examples" / "torch_port.py"))["Port"]


def hub_model(**options: Any) -> Any:
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, **options).eval()


def hand_written() -> Any:
    return Port(TINY, torch.nn.SiLU())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            return model(torch.tensor([IDS])).logits[0]
        return model(torch.tensor(IDS))


MODELS: dict[str, Callable[[], Any]] = {
    "transformers-sdpa-bf16": lambda: hub_model(attn_implementation="sdpa", dtype=torch.bfloat16),
    "transformers-eager": lambda: hub_model(attn_implementation="eager", dtype=torch.float32),
    "hand-written": hand_written,
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_same_bytes_with_and_without_a_recording(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    plain = logits(model)
    with af.record(tmp_path / "run", model=model, tokens=IDS):
        seen = logits(model)
    again = logits(model)
    assert plain.view(torch.uint8).equal(seen.view(torch.uint8))
    assert plain.view(torch.uint8).equal(again.view(torch.uint8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    dump = read_dump(tmp_path / "run")
    assert len(dump) > 60
    last = next(array for key, array in dump.items() if key in ("lm_head", "head"))
    bits = plain.view(torch.int16 if plain.dtype is torch.bfloat16 else torch.int32).numpy().reshape(-1)
    np.testing.assert_array_equal(last.load().reshape(-1).view(bits.dtype), bits)


def test_every_value_is_as_it_was_when_it_was_computed_where_sums_are_in_place(tmp_path: Path) -> None:
    port = hand_written()
    with af.record(tmp_path / "run", model=port, tokens=IDS):
        logits(port)
    dump = read_dump(tmp_path / "run")
    with torch.no_grad():
        x = port.embed(torch.tensor(IDS))
        block = port.blocks[0]
        middle = x + block.wo(block.mix(block.ln1(x)))
    for name, wanted in (("embed", x), ("blocks.0.ln2.input", middle)):
        np.testing.assert_array_equal(dump[name].load().reshape(wanted.shape), wanted.numpy())


def test_in_memory_a_value_that_was_changed_in_place_is_refused() -> None:
    port = hand_written()
    with (
        pytest.raises(af.AprFalsifyError, match="changed in place") as caught,
        af.record(model=port, tokens=IDS),
    ):
        logits(port)
    assert "folder" in caught.value.remedy


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_memory_the_arrays_are_those_of_the_folder(mode: Any, tmp_path: Path) -> None:
    model = hub_model(attn_implementation="sdpa", dtype=torch.float32)
    kept = af.record(model=model, tokens=IDS)
    with mode(), kept:
        model(torch.tensor([IDS]))
    with mode(), af.record(tmp_path / "run", model=model, tokens=IDS):
        model(torch.tensor([IDS]))
    dump = read_dump(tmp_path / "run")
    assert dump.keys() == kept.arrays.keys()
    for name, array in kept.arrays.items():
        np.testing.assert_array_equal(dump[name].load().reshape(array.shape), array)


class Fed(torch.nn.Module):
    """Attention of torch on what it is given, with an argument by keyword."""

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, key=q * 2, value=q * 3, is_causal=True)


def test_attention_of_torch_is_seen_with_what_it_is_given() -> None:
    q = torch.randn(1, 2, 5, 8)
    module = Fed()
    with torch.no_grad(), af.record(model=module, tokens=[1]) as rec:
        got = module(q)
    held = {name: array for name, array in rec.arrays.items() if "sdpa" in name}
    for name, wanted in (("sdpa.q", q), ("sdpa.k", q * 2), ("sdpa.v", q * 3), ("sdpa", got)):
        np.testing.assert_array_equal(held.get(name, q.numpy()), wanted.numpy())
    assert len(held) == 4


class Stamped:
    """What has ``__array__`` alone."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.arange(6, dtype=np.float16).reshape(2, 3)


class Handed:
    """What has DLPack alone."""

    def __init__(self) -> None:
        self._values = np.arange(6, dtype=np.float64)

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


def test_arrays_of_any_framework_are_kept_in_their_number_format(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    given: dict[str, tuple[Any, str, Any]] = {
        "numpy": (turned, "f32", turned),
        "other order of bytes": (np.arange(3, dtype=">f4"), "f32", np.arange(3.0)),
        "torch": (torch.arange(6.0).reshape(2, 3).T, "f32", np.arange(6.0).reshape(2, 3).T),
        "torch bf16": (torch.tensor([1.5, -2.0]).bfloat16(), "bf16", np.array([0x3FC0, 0xC000])),
        "parameter": (torch.nn.Parameter(torch.ones(2)), "f32", np.ones(2)),
        "array": (Stamped(), "f16", np.arange(6).reshape(2, 3)),
        "dlpack": (Handed(), "f64", np.arange(6)),
        "scalar": (1.5, "f64", np.array(1.5)),
        "ids": (np.array([1, 2]), "i64", np.array([1, 2])),
    }
    with af.record(tmp_path / "run", tokens=np.array([[3, 4]])) as rec:
        for name, (array, _, _) in given.items():
            rec(name, array)
    dump = read_dump(tmp_path / "run")
    assert list(dump) == list(given)
    for name, (_, kind, wanted) in given.items():
        assert (dump[name].kind, dump[name].shape) == (kind, wanted.shape)
        loaded = dump[name].load().reshape(-1)
        np.testing.assert_array_equal(loaded.view("<u2") if kind == "bf16" else loaded, wanted.reshape(-1))
    facts = read_facts(tmp_path / "run")
    assert facts is not None
    assert facts.tokens == (3, 4)


@pytest.mark.parametrize("package", ["jax", "mlx"])
def test_arrays_of_a_framework_that_is_installed(package: str, tmp_path: Path) -> None:
    if package == "jax":
        numpy = pytest.importorskip("jax.numpy", reason="jax is not installed")
    else:
        numpy = pytest.importorskip("mlx.core", reason="mlx is not installed")
    with af.record(tmp_path / "run", tokens=[1]) as rec:
        rec("plain", numpy.array([1.5, 2.5]))
        rec("half", numpy.array([1.5, -2.0]).astype(numpy.bfloat16))
    dump = read_dump(tmp_path / "run")
    np.testing.assert_array_equal(dump["plain"].load(), [1.5, 2.5])
    assert dump["half"].kind == "bf16"
    np.testing.assert_array_equal(dump["half"].load().view("<u2"), [0x3FC0, 0xC000])


def test_more_arrays_than_one_header_takes_go_into_several_files(tmp_path: Path) -> None:
    with af.record(tmp_path / "run", tokens=[1]) as rec:
        for number in range(1500):
            rec(f"{'a long name ' * 8}{number}", np.full(3, number, np.float32))
    assert len(list((tmp_path / "run").glob("*.safetensors"))) > 1
    dump = read_dump(tmp_path / "run")
    assert [float(array.load()[0]) for array in dump.values()] == list(range(1500))


def _twice(rec: af.Recorder) -> None:
    rec("a", np.ones(2))
    rec("a", np.ones(2))


def _many(rec: af.Recorder) -> None:
    for number in range(10_001):
        rec(str(number), np.ones(1))


REFUSED: dict[str, tuple[Callable[[af.Recorder], object], str]] = {
    "one-name-twice": (_twice, "recorded already"),
    "nothing": (lambda rec: None, "nothing was recorded"),
    "objects": (lambda rec: rec("a", np.array([object()])), "no array of plain numbers"),
    "text": (lambda rec: rec("a", "text"), "no array of plain numbers"),
    "complex": (lambda rec: rec("a", np.ones(2, complex)), "no array of plain numbers"),
    "sparse": (lambda rec: rec("a", torch.eye(2).to_sparse()), "no array of plain numbers"),
    "no-values": (lambda rec: rec("a", torch.ones(2, device="meta")), "no array of plain numbers"),
    "no-name": (lambda rec: rec("", np.ones(2)), "no name"),
    "ten-thousand": (_many, "more than 10000 arrays"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_is_a_typed_error_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    do, said = REFUSED[case]
    with (
        pytest.raises(af.AprFalsifyError, match=said) as caught,
        af.record(tmp_path / "run", tokens=[1]) as rec,
    ):
        do(rec)
    assert caught.value.where
    assert caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_an_exception_within_the_block_leaves_nothing_and_is_the_users(tmp_path: Path) -> None:
    model = hand_written()

    class Own(Exception):
        pass

    with pytest.raises(Own), af.record(tmp_path / "deep" / "run", model=model, tokens=IDS):
        raise Own(logits(model))
    assert list(tmp_path.iterdir()) == []
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("tokens", [None, [], [[1, 2], [3, 4]], ["a"], [1.5], [-1]])
def test_tokens_that_are_none_are_refused(tokens: Any, tmp_path: Path) -> None:
    with pytest.raises(af.AprFalsifyError, match="token"):
        af.record(tmp_path / "run", tokens=tokens)


def test_a_run_of_other_tokens_than_are_said_is_refused(tmp_path: Path) -> None:
    port = hand_written()
    with (
        pytest.raises(af.AprFalsifyError, match=r"ran \[274, 272"),
        af.record(tmp_path / "run", model=port, tokens=[1, 2, 3]),
    ):
        logits(port)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_within_one_recording_is_refused(tmp_path: Path) -> None:
    port = hand_written()
    with (
        pytest.raises(af.AprFalsifyError, match="a second time"),
        af.record(tmp_path / "run", model=port, tokens=IDS),
    ):
        torch.stack([logits(port), logits(port)])
    assert list(tmp_path.iterdir()) == []


def _compiled() -> Any:
    return torch.compile(Fed(), backend="eager")


def _compiled_in_place() -> Any:
    module = torch.nn.Sequential(Fed())
    module[0].compile(backend="eager")
    return module


def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Fed(), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("make", [_compiled, _compiled_in_place, _scripted])
def test_compiled_code_is_refused_with_words(make: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(af.AprFalsifyError, match=r"compiled|scripted") as caught:
        af.record(tmp_path / "run", model=make(), tokens=[1]).__enter__()
    assert "rec(name, array)" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_module_and_what_is_out_of_turn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(af.AprFalsifyError, match="no module of torch"):
        af.record(tmp_path / "run", model=len, tokens=[1])
    rec = af.record(tmp_path / "run", tokens=[1])
    with pytest.raises(af.AprFalsifyError, match="not open"):
        rec("a", np.ones(1))
    with rec:
        rec("a", np.ones(1))
    for late in (lambda: rec("b", np.ones(1)), rec.__enter__, lambda: rec.arrays):
        with pytest.raises(af.AprFalsifyError):
            late()
    with pytest.raises(af.AprFalsifyError, match="exists already"):
        af.record(tmp_path / "run", tokens=[1]).__enter__()
