"""What the oracle refuses, each with a typed error that says what to do."""

from __future__ import annotations

import pytest
import torch

from apr_falsify.errors import DeviceError, LayerRangeError, StageError, TokensError, UsageError
from apr_falsify.oracle.capture import capture, load
from apr_falsify.traces.capture import MemorySink
from tests.unit.helpers import TINY, run_script
from tests.unit.oracle.conftest import OpenCheckpoint
from tests.unit.oracle.requests import request_for

WITHOUT = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from pathlib import Path
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.errors import AprFalsifyError
from apr_falsify.oracle import capture, hub, tokenizer
from apr_falsify.formats.weights import open_model
model = open_model(Path(sys.argv[1]))
request = Request(tokens=(1, 2), layers=range(1), stages=("embedding",))
try:
    CALL
except AprFalsifyError as error:
    print(type(error).__name__, error, sep="\\n")
"""


@pytest.mark.parametrize(
    ("blocked", "call"),
    [
        ("torch", "capture.capture(model, request, MemorySink())"),
        ("transformers", "capture.capture(model, request, MemorySink())"),
        ("torch", "capture.forward(model, (1, 2))"),
        ("torch", "from apr_falsify.oracle import probe"),
        ("transformers", "tokenizer.encode(model, 'What is 2+2?')"),
        ("huggingface_hub", "hub.resolve('some/model')"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(blocked: str, call: str) -> None:
    script = WITHOUT.replace("BLOCKED", repr((blocked,))).replace("CALL", call)

    done = run_script(script, TINY)

    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "MissingDependencyError"
    assert "pip install 'apr-falsify[oracle]'" in done.stdout


def test_the_room_is_imported_without_torch_and_transformers() -> None:
    script = "import apr_falsify.oracle.capture, apr_falsify.oracle.hub, apr_falsify.oracle.tokenizer\n"

    done = run_script(script + "print([m for m in ('torch', 'transformers') if m in sys.modules])")

    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here, and it is its absence that is tested")
def test_cuda_without_cuda_fails_and_never_falls_back(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")

    with pytest.raises(DeviceError, match="CUDA is not available") as caught:
        capture(model, request_for(model), MemorySink(), device="cuda")
    assert "--device cpu" in caught.value.remedy


def test_an_unknown_device_is_refused(checkpoint: OpenCheckpoint) -> None:
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        load(checkpoint("llama"), device="tpu")


def test_an_unknown_number_format_is_refused(checkpoint: OpenCheckpoint) -> None:
    with pytest.raises(UsageError, match="unknown number format 'f8'"):
        load(checkpoint("llama"), dtype="f8")


def test_a_request_is_refused_before_anything_is_loaded(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")

    with pytest.raises(LayerRangeError):
        capture(model, request_for(model, layers=range(4)), MemorySink())
    with pytest.raises(StageError):
        capture(model, request_for(model, stages=("qkv_bias",)), MemorySink())
    with pytest.raises(TokensError):
        capture(model, request_for(model, tokens=0), MemorySink())
