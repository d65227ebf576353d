"""What the names of a dump's files say beside the module: of which pass an array is, and of which rank.

The words are those of what people dump with:

- vLLM, ``step_0/model.layers.0.mlp/outputs_cuda_0.pt``
  (https://docs.vllm.ai, contributing, intermediate tensor logging)
- msprobe, ``step0/rank0/dump_tensor_data/Module.model.norm.RMSNorm.forward.0.output.0.pt``
  (https://gitee.com/ascend/mstt, msprobe, data dump for PyTorch)
- SGLang, ``TP0_PP0_Rank0_pid17/Pass00000.pt`` and ``forward_pass_id=1___rank=0___name=q.pt``
  (https://github.com/sgl-project/sglang, ``srt/debug_utils``)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from apr_falsify.errors import UndecidedError

_AT, _END = r"(?:^|/|___)", r"(\d+)(?=[/_.]|$)"
_PASS = re.compile(rf"{_AT}(?:step_?|Pass_?|forward_pass_id=|pass_?){_END}")
_RANK = re.compile(
    rf"{_AT}(?:(?:[A-Z]+\d+_)*[Rr]ank[_=]?|(?:(?:inputs|outputs)_(?:\d+_)*)?(?:cuda|npu)_){_END}"
)


def check_one_pass(names: Iterable[str], where: Path) -> None:
    """Refuse arrays of several passes or ranks, where nothing says how they belong together.

    Raises:
        UndecidedError: the names of files tell several steps, or several ranks.

    """
    names = list(names)
    for what, pattern in (("steps", _PASS), ("ranks", _RANK)):
        told = sorted({int(found[1]) for name in names if (found := pattern.search(name))})
        if len(told) > 1:
            raise UndecidedError(
                f"its arrays are of several {what}: {', '.join(map(str, told[:8]))}",
                where=where,
                expected=f"the arrays of one of these {what}, or a MAPPING.yaml that says how they join",
                remedy=f"name the folder of one of them, recorded:{where}/...; docs/phases.md and `ranks` in "
                "docs/porting.md say how a mapping puts several together",
            )
