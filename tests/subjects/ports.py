"""The port of the pages in ONNX, as an exporter leaves it."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.acceptance.programs import TINY
from tests.subjects.fake_apr import TOKENS

BUILT = Path(__file__).with_name("built_port.py")
"""A user's file for ``torch:FILE.py:BUILD``."""


class _OneRow(torch.nn.Module):
    """A batch of one row in, logits out."""

    def __init__(self, port: torch.nn.Module) -> None:
        super().__init__()
        self.port = port

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.port(input_ids[0])
        return logits[None]


def onnx_port(folder: Path, *, right: bool = True) -> Path:
    """Export the port for ``TOKENS`` by torch's exporter of TorchScript; return the file."""
    port: Any = runpy.run_path(str(BUILT.parents[2] / "docs" / "examples" / "torch_port.py"))["Port"]
    file = folder / "port.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _OneRow(port(TINY, torch.nn.SiLU() if right else None)).eval(),
            (torch.tensor([TOKENS]),),
            str(file),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamo=False,
        )
    return file
