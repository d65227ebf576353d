"""Experts of a mixture that are read when a token is given to them: of 128 a short prompt needs a part.

transformers holds the matrices of all experts of a layer as one tensor, and takes an expert's part by its
number. Here a tensor of one number, seen in that shape, stands in for it while the model is made, and then
what reads an expert's own matrices from the checkpoint. The forward pass is transformers' own code; its bits
are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apr_falsify.errors import ModelError
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Model
from apr_falsify.model.families import shape_of_role
from apr_falsify.model.shape import EXPERT_ROLES
from apr_falsify.oracle.libraries import torch

_PARTS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": EXPERT_ROLES[:2], "down_proj": EXPERT_ROLES[2:]}
"""What transformers calls a tensor of all experts -> the roles whose rows lie in it, one below the other."""

Decode = Callable[[Tensor, torch.dtype], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOneByOne:
    """The matrices of a layer's experts [experts, out, in], of which one is read when it is asked for.

    Attributes:
        model: the model that holds them.
        layer: the layer.
        roles: whose rows lie one below the other.
        dtype: the number format to give them in.
        device: where they are needed.
        decode: what reads a tensor whole.

    """

    model: Model
    layer: int
    roles: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device
    decode: Decode

    def __getitem__(self, expert: Any) -> torch.Tensor:
        tensors = (self.model.weights.tensor(f"{role}.{int(expert)}", self.layer) for role in self.roles)
        return torch.cat([self.decode(tensor, self.dtype) for tensor in tensors]).to(self.device)


def read_one_by_one(model: Model) -> bool:
    """Whether the checkpoint holds the matrices of each expert by themselves."""
    names = model.weights.names
    return model.format == "safetensors" and all("{e}" in names.get(role, "") for role in EXPERT_ROLES)


def stand_ins(model: Model, layers: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Give what stands in for the tensors of all experts: name, and one number in their shape."""
    geometry = model.geometry
    stem = model.weights.names[EXPERT_ROLES[0]].partition("{e}")[0]
    for layer in filter(geometry.is_mixture, range(layers)):
        for name, roles in _PARTS.items():
            shapes = [shape_of_role(role, geometry) for role in roles]
            shape = (geometry.experts, sum(height for height, _ in shapes), shapes[0][1])
            yield f"{stem.format(n=layer)}{name}", torch.zeros((), dtype=dtype).expand(shape)


def put_readers(
    decoder: torch.nn.Module, paths: Mapping[int, str], model: Model, device: torch.device, decode: Decode
) -> None:
    """Put what reads experts in the place of what stood in for them.

    Args:
        decoder: the base model.
        paths: layer -> the path of its experts within the base model.
        model: the model that holds them.
        device: where the model will run.
        decode: what reads a tensor whole.

    Raises:
        ModelError: transformers made something else of what stood in.

    """
    for layer, path in paths.items():
        module: Any = decoder.get_submodule(path)
        for name, roles in _PARTS.items():
            stood_in = module._parameters.pop(name, None)
            if stood_in is None or any(stood_in.stride()):
                raise ModelError(
                    f"transformers holds the experts of layer {layer} otherwise than as {name}",
                    where=model.path,
                    expected="a version of transformers that this package was tested with",
                )
            reader = ReadOneByOne(
                model=model, layer=layer, roles=roles, dtype=stood_in.dtype, device=device, decode=decode
            )
            setattr(module, name, reader)
