"""A recording of one's own program is judged without a mapping; arrays that are of no one run are refused."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apr_falsify as af
from apr_falsify.errors import AprFalsifyError, ExitCode
from tests.acceptance.programs import TINY
from tests.acceptance.test_porting import stable

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "subjects" / "recording.md"
QUOTER: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "quote_page.py"))
Port: Any = runpy.run_path(str(ROOT / "docs" / "examples" / "torch_port.py"))["Port"]
IDS = (274, 272, 223, 20, 13, 20, 33)


def test_the_page_on_recordings_says_what_its_commands_print(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(QUOTER["printed"](page, QUOTER["prepared"](tmp_path, page)))
    assert len(blocks) == page.count("\n$ ") == 4
    for command, quoted, printed in blocks:
        assert stable(quoted) == stable(printed), command
    assert len(re.findall("^localised|^consistent", page, flags=re.MULTILINE)) == 3


def recorded(place: Path, port: Any, ids: tuple[int, ...] = IDS) -> Path:
    with torch.no_grad(), af.record(place, model=port, tokens=ids):
        port(torch.tensor(ids))
    return place


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("right") / "run", Port(TINY, torch.nn.SiLU()))


def values_of(run: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(run / "arrays-0.safetensors")


def again(place: Path, arrays: dict[str, Any], ids: tuple[int, ...] = IDS) -> Path:
    with af.record(place, tokens=ids) as rec:
        for name, values in arrays.items():
            rec(name, values)
    return place


def refusal(place: Path, **sides: Any) -> AprFalsifyError:
    """Return the error of a bisection that is none."""
    with pytest.raises(AprFalsifyError) as caught:
        af.bisect(TINY, f"recorded:{place}", **sides)
    assert caught.value.exit_code in (ExitCode.USAGE, ExitCode.INCONCLUSIVE)
    return caught.value


def floats_of(run: Path) -> dict[str, Any]:
    return {name: values for name, values in values_of(run).items() if values.dtype == np.float32}


def test_tokens_that_no_array_fits_are_said_so(right: Path, tmp_path: Path) -> None:
    first = {name: values for name, values in floats_of(right).items() if name in ("embed", "blocks.0.ln1")}
    error = refusal(again(tmp_path / "run", first, (9, 8, 7, 6, 5, 4, 3)))
    assert re.search("on these tokens|token 0 is given as 9", error.what)


def test_a_count_of_tokens_that_no_array_has_is_said_so(right: Path, tmp_path: Path) -> None:
    error = refusal(again(tmp_path / "run", floats_of(right), (1, 2, 3, 4, 5)))
    assert "5 tokens" in error.what
    assert "tokens that were run" in error.remedy


def test_a_bag_of_another_model_is_said_so(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    arrays = {f"a{n}": chance.normal(size=(7, 256)).astype(np.float32) for n in range(2)}
    assert "no array is a stage of this model" in refusal(again(tmp_path / "run", arrays)).what


def test_arrays_of_two_runs_are_said_so(right: Path, tmp_path: Path) -> None:
    other = recorded(tmp_path / "other", Port(TINY, torch.nn.SiLU()), (9, 8, 7, 6, 5, 4, 3))
    mixed = values_of(right)
    mixed |= {name: values for name, values in values_of(other).items() if name.startswith("blocks.1")}
    error = refusal(again(tmp_path / "run", mixed))
    assert error.exit_code == ExitCode.INCONCLUSIVE
    assert "of one run" in error.expected


def test_other_tokens_than_the_recording_has_are_refused(right: Path) -> None:
    error = refusal(right, tokens=(1, 2, 3))
    assert "not those of the recording" in error.what
    assert "recording.json" in error.expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "schema"), ("[", "recording.json"), ('{"schema": "apr-falsify/recording/v1"}', "tokens")],
)
def test_what_was_not_written_by_record_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "recording.json").write_text(text)
    assert said in str(refusal(tmp_path))


def test_a_recording_of_a_file_of_torch_is_judged_as_it_lies(right: Path, tmp_path: Path) -> None:
    arrays = {name: torch.from_numpy(values) for name, values in values_of(right).items()}
    torch.save(arrays, tmp_path / "run.pt")
    result = af.bisect(TINY, f"recorded:{tmp_path / 'run.pt'}", tokens=IDS, layers=range(0, 1))
    assert (result.kind, result.sources) == (af.Kind.CONSISTENT, ())
