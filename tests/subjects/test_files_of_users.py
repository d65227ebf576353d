"""Files of users' that build a module: run anew each time, as Python runs them, and never past an answer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import apr_falsify as af
from apr_falsify.commands.torch_subject import TorchRun, device_of
from apr_falsify.errors import OutputError, TokensError, TraceError, UndecidedError, UsageError
from apr_falsify.subjects.recording_json import RECORDING_JSON
from tests.acceptance.programs import TINY, run
from tests.subjects.fake_apr import TOKENS
from tests.subjects.ports import BUILT

PORT = f"""
from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

sys.path.insert(0, {str(BUILT.parents[2] / "docs" / "examples")!r})
from torch_port import Port


@dataclass
class Settings:
    model: str
    bias: bool | None = None


def build():
    from its_settings import act  # not before the function is called

    print("building")
    port = Port(Settings({str(TINY)!r}).model, act)

    def call(ids):
        import its_row

        return port(its_row.of(ids))

    return port, call


def other():
    return build()
"""


def written(folder: Path, act: str = "SiLU") -> Path:
    (folder / "its_settings.py").write_text(f"import torch\n\nact = torch.nn.{act}()\n")
    (folder / "its_row.py").write_text("import torch\n\nof = torch.tensor\n")
    file = folder / "its_port.py"
    file.write_text(PORT)
    return file


def test_what_a_file_imports_may_change_between_two_runs_into_one_folder(tmp_path: Path) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    sides = ("--subject", f"torch:{file}:build", "--tokens", ",".join(map(str, TOKENS)), "--out", out)
    before = list(sys.path), set(sys.modules)
    right = run("bisect", "--oracle", TINY, *sides, "--layers", "0..1", "--format", "json")
    assert (right.code, right.json["kind"]) == (0, "consistent"), right.err
    assert "building" in right.err
    written(tmp_path, act="GELU")
    wrong = run("bisect", "--oracle", TINY, *sides, "--layers", "0..1", "--format", "json")
    assert wrong.code == 1
    assert [(one["layer"], one["stages"]) for one in wrong.json["sources"]] == [(0, ["ffn_silu"])]
    assert sys.path == before[0]
    assert not {name for name in set(sys.modules) - before[1] if name.startswith(("its_", "apr_falsify_sub"))}
    assert not list(tmp_path.rglob("__pycache__"))
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"oracle", "subject"}

    said = json.loads((out / "subject" / "trace.json").read_text())["provenance"]
    assert said["binary_sha256"] is None
    assert re.search(r"its_port.py [0-9a-f]{16}, what it imports and loads not identified", said["driver"])
    assert any("its_port.py:build imports and loads" in one for one in wrong.json["not_checked"])

    with pytest.raises(OutputError, match="another capture"):
        af.bisect(TINY, f"torch:{file}:other", tokens=TOKENS, out=out)


def test_an_earlier_run_stays_where_the_next_one_fails(tmp_path: Path) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    af.capture(f"torch:{file}:build", oracle=TINY, tokens=TOKENS, out=out)
    earlier = (out / "trace.json").read_bytes()
    (tmp_path / "its_settings.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UsageError, match="raised SystemExit"):
        af.capture(f"torch:{file}:build", oracle=TINY, tokens=TOKENS, out=out)
    assert (out / "trace.json").read_bytes() == earlier
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


EXITS = {
    "the file": "import sys\nsys.exit(0)\n",
    "build()": "def build():\n    raise SystemExit\n",
    "the module": "import torch\ndef build():\n    return torch.nn.Linear(1, 1), lambda ids: exit(0)\n",
}


@pytest.mark.parametrize("what", EXITS)
def test_an_exit_in_a_file_is_a_typed_error(what: str, tmp_path: Path) -> None:
    file = tmp_path / "leaves.py"
    file.write_text(EXITS[what])
    with pytest.raises(UsageError, match=rf"{re.escape(what)} raised SystemExit") as caught:
        af.bisect(TINY, f"torch:{file}:build", tokens=TOKENS)
    assert str(caught.value.where).startswith(f"{file}:")


def test_a_file_that_clears_the_path_is_run_all_the_same(tmp_path: Path) -> None:
    file, path = tmp_path / "clears.py", list(sys.path)
    file.write_text(
        "import sys, torch\nsys.path.pop(0)\n"
        "def build():\n"
        "    module = torch.nn.Linear(1, 1)\n"
        "    return module, lambda ids: module(torch.ones(1))\n"
    )
    assert TorchRun(file=file, build="build")((1, 2), tmp_path / "run") == "cpu"
    assert (tmp_path / "run" / RECORDING_JSON).is_file()
    assert sys.path == path


def test_a_module_of_another_model_is_refused_by_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    module = torch.nn.Sequential(torch.nn.Embedding(512, 64), torch.nn.Linear(64, 64))\n"
        "    return module, lambda ids: module(torch.tensor(ids))\n"
    )
    with pytest.raises((TraceError, UndecidedError, TokensError)) as caught:
        af.bisect(TINY, f"torch:{file}:build", tokens=TOKENS)
    assert caught.value.where == f"torch:{file}:build"
    assert "apr-falsify-torch-" not in str(caught.value)
    assert "apr_falsify.record(" in caught.value.remedy


def test_the_device_is_that_of_the_weights() -> None:
    assert device_of(torch.nn.Linear(1, 1)) == "cpu"
    assert device_of(torch.nn.Linear(1, 1, device="meta")) == "unknown"
    assert device_of(torch.nn.ReLU()) == "cpu"
