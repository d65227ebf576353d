"""A file of a user's, as ``torch:FILE.py:BUILD`` names it: functions that build a module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "examples"))
from torch_port import Port  # noqa: E402  # its folder is known from here on

MODEL = ROOT / "src" / "apr_falsify" / "data" / "tiny-qwen2"


def right() -> tuple[Any, Callable[[list[int]], Any]]:
    port = Port(MODEL, torch.nn.SiLU())
    return port, lambda ids: port(torch.tensor(ids))


def wrong() -> tuple[Any, Callable[[list[int]], Any]]:
    port = Port(MODEL)
    return port, lambda ids: port(torch.tensor(ids))


def by_transformers() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()


def raises() -> None:
    raise RuntimeError("out of luck")


def none() -> int:
    return 3
