"""Between torch modules and named arrays. The only file of the client that imports torch."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role

from .quantize import NamedArrays

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "steelyard.client.torch needs torch, which is not installed: "
        "pip install 'steelyard[torch]'",
        name="torch",
    ) from None

RUNNING_STATISTICS: Final = ("running_mean", "running_var")
"""Buffers of batch and instance normalisation that are averaged beside the weights."""
_DTYPES: Final = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.bfloat16, torch.float16, torch.float32, torch.float64,
)  # fmt: skip

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def dump(module: torch.nn.Module, roles: Mapping[str, Role | str] | None = None) -> NamedArrays:
    """Return copies of the parameters and persistent buffers of a module, by name.

    `roles` says what happens to tensors in a round; keys are names, or prefixes that end before a
    dot ("head" covers "head.weight"), the longest wins. By default parameters are trained, frozen
    ones (`requires_grad=False`) kept, running statistics averaged, other buffers kept. Tensors that
    share memory appear once, under their first name.
    Raises: SteelyardError `model_dtype`, `model_role`, `model_tensor`.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    chosen = {key: _parse_role(key, role) for key, role in (roles or {}).items()}
    used: set[str] = set()
    arrays: dict[str, NDArray[Any]] = {}
    found: dict[str, Role] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise SteelyardError("model_tensor", f"{name!r} is extra state, which has no numbers")
        key = _find_key(name, chosen)
        used |= {key} if key is not None else set()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        arrays[name] = _to_array(name, tensor)
        found[name] = chosen[key] if key is not None else _choose_role(name, tensor, parameters)
    for key in sorted(set(chosen) - used):
        raise SteelyardError("model_role", f"a role is given for {key!r}: no such tensor or module")
    return NamedArrays(arrays, found)


def load(module: ModuleT, arrays: Mapping[str, NDArray[Any]]) -> ModuleT:
    """Copy named arrays into a module and return it. Tensors without an array stay as they are.

    Raises SteelyardError `model_tensor` if an array has no tensor, or one of another shape;
    nothing is copied then.
    """
    state = module.state_dict()
    for name, array in arrays.items():
        if name not in state:
            raise SteelyardError(
                "model_tensor", f"the module has no tensor {name!r}: is it another network?"
            )
        if tuple(state[name].shape) != np.shape(array):
            raise SteelyardError(
                "model_tensor",
                f"tensor {name!r} has shape {np.shape(array)}, "
                f"the module's is {tuple(state[name].shape)}",
            )
    with torch.no_grad():
        for name, array in arrays.items():
            # A copy: arrays may be read-only views, which torch cannot wrap.
            state[name].copy_(torch.from_numpy(np.array(array)))
    return module


def _parse_role(key: str, role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        raise SteelyardError(
            "model_role", f"{key!r} has the role {role!r}; use train, average, keep or local"
        ) from error


def _find_key(name: str, chosen: Mapping[str, Role]) -> str | None:
    """Return the name itself or its longest prefix, in whole components, that has a role."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in chosen), None)


def _choose_role(
    name: str, tensor: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]
) -> Role:
    if name in parameters:
        is_trained = tensor.requires_grad and tensor.is_floating_point()
        return Role.TRAIN if is_trained else Role.KEEP
    if name.rsplit(".", 1)[-1] in RUNNING_STATISTICS:
        return Role.AVERAGE
    return Role.KEEP


def _to_array(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
        raise SteelyardError(
            "model_dtype",
            f"tensor {name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; "
            "use dense float32",
        )
    dense = tensor.detach().cpu().resolve_neg()
    # numpy has no bfloat16; float32 holds all of its values.
    if dense.dtype == torch.bfloat16:
        dense = dense.float()
    return dense.numpy().copy()
