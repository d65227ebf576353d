"""What is seen of a module while it runs: each value under one name, of one run of the said tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apr_falsify as af
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.recording_json import read_facts

IDS = [5, 2, 9, 4]


def recorded(folder: Path) -> dict[str, Any]:
    return {name: array.load().reshape(array.shape) for name, array in read_dump(folder).items()}


class Flipped(torch.nn.Module):
    """Softmax of one tensor before and after half of each head is negated in place."""

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        before = torch.softmax(q, -1)
        q[..., 16:] *= -1
        return before + torch.softmax(q, -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_value_that_is_changed_in_place_is_shown_again(mode: Any, tmp_path: Path) -> None:
    module = Flipped()
    with mode(), af.record(tmp_path / "run", model=module, tokens=IDS):
        q = torch.randn(1, 8, 8, 32)
        first = q.clone().numpy()
        module(q)
    held = recorded(tmp_path / "run")
    np.testing.assert_array_equal(held["softmax.input"], first)
    np.testing.assert_array_equal(held["softmax#2.input"][..., 16:], -first[..., 16:])


def test_in_inference_mode_an_unchanged_value_is_shown_once() -> None:
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    with torch.inference_mode(), af.record(model=module, tokens=IDS) as rec:
        module(torch.randn(3, 4).T)
    assert list(rec.arrays) == ["0.input"]


class Headed(torch.nn.Module):
    """A decoder whose head is called ``output``, as in Meta's Llama and torchtune."""

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        self.tok = torch.nn.Embedding(rows, 8)
        self.pos = torch.nn.Embedding(rows, 8)
        self.output = torch.nn.Linear(8, rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tok(ids) + self.pos(torch.arange(ids.shape[-1]))
        return self.output(hidden).float() * 2


def ids_of(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows or [IDS])


def test_what_the_module_gives_has_another_name_than_a_child_called_output(tmp_path: Path) -> None:
    module = Headed()
    with torch.no_grad(), af.record(tmp_path / "run", model=module, tokens=IDS):
        wanted = module(ids_of()).numpy()
    held = recorded(tmp_path / "run")
    np.testing.assert_array_equal(held["output#2"], wanted)
    np.testing.assert_array_equal(held["output"] * 2, wanted)


class Leaf(torch.nn.Module):
    def forward(self, angles: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return x * angles[0] + angles[1]


class Around(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leaf((x + 1, x + 2), x + 3)


def test_tensors_in_nested_tuples_have_a_name_each() -> None:
    module, x = Around(), torch.randn(3)
    with af.record(model=module, tokens=IDS) as rec:
        module(x)
    for name, wanted in (("leaf.input", x + 1), ("leaf.input.1", x + 2), ("leaf.input.1#2", x + 3)):
        np.testing.assert_array_equal(rec.arrays[name], wanted.numpy())


def test_a_name_of_the_users_own_is_left_to_the_user(tmp_path: Path) -> None:
    module = Around()
    with af.record(tmp_path / "run", model=module, tokens=IDS) as rec:
        rec("leaf.input", np.zeros(3))
        module(torch.ones(3))
        with pytest.raises(af.AprFalsifyError, match="recorded already"):
            rec("leaf.input#2", np.zeros(3))
    held = recorded(tmp_path / "run")
    np.testing.assert_array_equal(held["leaf.input"], np.zeros(3))
    np.testing.assert_array_equal(held["leaf.input#2"], np.full(3, 2.0))


def test_a_module_that_runs_before_the_whole_is_no_second_run() -> None:
    module = Headed()
    with torch.no_grad(), af.record(model=module, tokens=IDS) as rec:
        module.tok(ids_of())
        module(ids_of())
    np.testing.assert_array_equal(rec.arrays["tok"], rec.arrays["tok#2"])


OTHER_RUNS: dict[str, Callable[[Headed], object]] = {
    "two-runs-by-forward": lambda module: (module.forward(ids_of()), module.forward(ids_of([1, 2, 3, 4]))),
    "two-sequences": lambda module: module(ids_of(IDS, [7, 7, 7, 7])),
    "more-of-the-table": lambda module: (module.tok(ids_of([3, 8])), module(ids_of())),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_tokens_beside_those_that_are_said_are_refused(case: str, tmp_path: Path) -> None:
    module = Headed()
    with (
        pytest.raises(af.AprFalsifyError, match="the module ran") as caught,
        torch.no_grad(),
        af.record(tmp_path / "run", model=module, tokens=IDS),
    ):
        OTHER_RUNS[case](module)
    assert caught.value.where == "tokens"
    assert list(tmp_path.iterdir()) == []


def test_positions_are_no_tokens() -> None:
    module = Headed()
    with (
        pytest.raises(af.AprFalsifyError, match=r"ran \[5, 2, 9, 4\]"),
        af.record(model=module, tokens=[0, 1, 2, 3]),
    ):
        module(ids_of())


def test_rows_of_other_tables_are_free() -> None:
    class Hashed(Headed):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + self.pos(ids * 3 % 16).sum()

    module = Hashed()
    with torch.no_grad(), af.record(model=module, tokens=IDS) as rec:
        module(ids_of())
    assert "pos#2" in rec.arrays


def test_two_recordings_of_modules_at_a_time_are_refused_and_torch_is_as_before() -> None:
    plain = torch.softmax, torch.matmul, torch.nn.functional.embedding
    first, second = Headed(), Headed()
    with ExitStack() as outer:
        outer.enter_context(af.record(model=first, tokens=IDS))
        other = af.record(model=second, tokens=IDS)
        with pytest.raises(af.AprFalsifyError, match="another recording of a module is open"):
            other.__enter__()
        first(ids_of())
    with other:
        second(ids_of())
    assert other.arrays
    assert plain == (torch.softmax, torch.matmul, torch.nn.functional.embedding)
    assert not any(part._forward_hooks for module in (first, second) for part in module.modules())


class Failing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError(x.shape)


class Catching(torch.nn.Module):
    """Tries one child and takes another where it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.ModuleDict({"fast": Failing(), "slow": torch.nn.Linear(4, 4)})
        self.after = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            x = self.block["fast"](x)
        except ValueError:
            x = self.block["slow"](torch.softmax(x, -1))
        return self.after(x)


def test_an_exception_of_a_child_that_the_module_catches_moves_no_name() -> None:
    module, x = Catching(), torch.randn(2, 4)
    with torch.no_grad(), af.record(model=module, tokens=IDS) as rec:
        got = module(x)
    assert list(rec.arrays) == ["block.fast.input", "softmax", "block.slow", "after"]
    np.testing.assert_array_equal(rec.arrays["after"], got.numpy())


def test_where_the_module_itself_did_not_run_the_error_names_compiled_code() -> None:
    module = Headed()
    with (
        pytest.raises(af.AprFalsifyError, match=r"nothing was recorded.*compiled") as caught,
        af.record(model=module, tokens=IDS),
    ):
        pass
    assert "torch.compile" in caught.value.remedy


class Sparse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to_sparse()


def test_where_nothing_could_be_kept_the_error_says_what_and_why() -> None:
    module = Sparse()
    with (
        pytest.raises(af.AprFalsifyError, match=r"1 values could not be kept \(output: .*sparse"),
        af.record(model=module, tokens=IDS),
    ):
        module(torch.eye(2))


def test_a_run_of_another_thread_is_not_seen() -> None:
    module = Headed()
    thread = threading.Thread(target=module, args=(ids_of(),))
    recording = af.record(model=module, tokens=IDS)
    recording.__enter__()
    thread.start()
    thread.join()
    with pytest.raises(af.AprFalsifyError, match="in this thread"):
        recording.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("share", "training", "said"), [(0.5, True, True), (0.0, True, False), (0.5, False, False)]
)
def test_active_dropout_is_told(
    share: float, training: bool, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(share)).train(training)
    with af.record(tmp_path / "run", model=module, tokens=IDS):
        module(torch.ones(2, 4))
    facts = read_facts(tmp_path / "run")
    assert facts is not None
    assert facts.training is said
    assert ("dropout was active" in capsys.readouterr().err) is said
