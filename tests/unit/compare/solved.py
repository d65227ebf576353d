"""What a fault is that is one number off, in a checkpoint of some family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from apr_falsify.model.stages import Key
from tests.unit.compare.family_runs import Run

Tensor = torch.Tensor
TOKENS = 9
EMBEDDED: Key = Key(0, "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A fault: the checkpoint, the stage, what it makes of it, and the cause with a pattern of its words."""

    recipe: str
    key: Key
    cause: str
    says: str
    make: Callable[[Run], Tensor]


def wrong(recipe: str, key: Key, cause: str, says: str, make: Callable[[Run], Tensor]) -> Wrong:
    return Wrong(recipe=recipe, key=key, cause=cause, says=says, make=make)
