"""The text part of a checkpoint that holds more: its tensors' names, and what is set aside."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_BEFORE = {
    "model.language_model.": "",
    "language_model.model.": "language_model.",
    "backbone.": "",  # Nemotron-H calls its decoder so
    "": "",
}
"""What stands before the names of a text model's tensors, in checkpoints of a larger model or of the base
model alone -> what then stands before that of its output head."""


def names_in(tensors: Collection[str], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``names`` (role -> tensor) as this checkpoint has them."""
    names = _of_experts(tensors, names)
    own = names["embed"].partition(".")[0] + "."
    if names["embed"] in tensors:
        return names
    for before, head in _BEFORE.items():
        if before + names["embed"].removeprefix(own) in tensors:
            return {
                role: before + name.removeprefix(own) if name.startswith(own) else head + name
                for role, name in names.items()
            }
    return names


def _of_experts(tensors: Collection[str], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``names`` with those of all experts in one tensor, where a checkpoint has them so."""
    stem, each, _ = names.get("expert_gate", "").partition("{e}.")
    end = f".{stem.rpartition('{n}.')[2]}gate_up_proj"
    if not each or not any(name.endswith(end) for name in tensors):
        return names
    both = {"expert_gate": f"{stem}gate_up_proj", "expert_up": f"{stem}gate_up_proj"}
    return {**names, **both, "expert_down": f"{stem}down_proj"}


def usual_name(name: str, names: Mapping[str, str], usual: Mapping[str, str]) -> str:
    """Return what the text model alone calls the tensor ``name``, given a checkpoint's names by role."""
    if name == names.get("lm_head"):
        return usual["lm_head"]
    before, own = _prefix(names["embed"], usual["embed"]), usual["embed"].partition(".")[0] + "."
    return own + name.removeprefix(before) if before != own and name.startswith(before) else name


def _prefix(name: str, usual: str) -> str:
    """Return what stands before the name of a tensor that the text model alone calls ``usual``."""
    return name.removesuffix(usual.partition(".")[2])


def set_aside(tensors: Collection[str], names: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, int]:
    """Return the parts of a checkpoint that are not its text model -> how many tensors each has."""
    before = _prefix(names["embed"], usual["embed"])
    found: dict[str, int] = {}
    for name in tensors:
        if not name.startswith(before) and name != names.get("lm_head"):
            part = ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])
            found[part] = found.get(part, 0) + 1
    return found
