"""A pretended accelerator for machines without one; it finds device errors and host reads.

Tensors on the device `pretend` are computed on the CPU, but torch and our code see them on another
device: `.numpy()` raises, and so does an operation on tensors of both devices. Every value that the
host reads from the device is recorded, because the host would have to wait for a GPU there.

    with PretendedAccelerator() as accelerator:
        model = load_model(folder, device=DEVICE)
        ...
        assert accelerator.reads == [...]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"

if torch._C._get_privateuse1_backend_name() != NAME:
    backend_registration._setup_privateuseone_for_python_backend(NAME)

DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default, aten._copy_from.default)
"""The operations that may see tensors of both devices."""

SYNCHRONISING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""Torch's tags of operations for which the host must read a result."""


class DeviceTensor(Tensor):
    """A tensor on the pretended device; `values` holds its numbers on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.values = values
        return tensor

    def numpy(self, **_: Any) -> Any:
        """Raises TypeError, as a tensor on a GPU does."""
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy: use Tensor.cpu()")

    def __repr__(self, **_: Any) -> str:
        return f"{self.values}, on {DEVICE}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called where the dispatch mode is not active, such as in autograd's threads."""
        assert PretendedAccelerator.entered, "a tensor outlived its pretended accelerator"
        return PretendedAccelerator.entered[-1].execute(func, args, kwargs or {})


class PretendedAccelerator(TorchDispatchMode):
    """A context manager in which the device `pretend` can be used.

    Attributes:
        reads: the host's reads from the device, in order: the number itself for a single value,
            otherwise the name of the operation.
    """

    entered: ClassVar[list[PretendedAccelerator]] = []

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int | float | str] = []

    def __enter__(self) -> Self:
        self.entered.append(self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.entered.pop()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.execute(func, args, kwargs or {})

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one operation on the CPU, under the rules of two devices."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, DeviceTensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs = {**kwargs, "device": "cpu"}
            on_device = torch.device(asked).type == NAME
        else:
            on_device = bool(ours)
        if func in COPIES:
            on_device = on_device if asked is not None else isinstance(args[0], DeviceTensor)
        elif ours and any(x.dim() for x in tensors if not isinstance(x, DeviceTensor)):
            raise RuntimeError(f"{func} was given tensors of the CPU and of {DEVICE}")
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        self._record_reads(func, ours, on_device, result)
        return tree_map(_wrapper(ours) if on_device else _same, result)

    def _record_reads(
        self, func: Any, ours: list[DeviceTensor], on_device: bool, result: Any
    ) -> None:
        if not ours:
            return
        if not isinstance(result, Tensor) and not isinstance(result, tuple | list):
            self.reads.append(result)
        elif not on_device or (
            any(tag in func.tags for tag in SYNCHRONISING) and not _indexes_by_number(func, ours)
        ):
            self.reads.append(str(func))


def _values(value: Any) -> Any:
    return value.values if isinstance(value, DeviceTensor) else value


def _same(value: Any) -> Any:
    return value


def _wrapper(ours: list[DeviceTensor]) -> Callable[[Any], Any]:
    """Puts results on the device; a tensor changed in place keeps its wrapper."""
    by_values = {id(x.values): x for x in ours}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, DeviceTensor):
            return value
        if id(value) in by_values:
            return by_values[id(value)]
        with torch.inference_mode(False):  # where torch lets no subclass stand for a view
            return DeviceTensor(value)

    return wrap


def _indexes_by_number(func: Any, ours: list[DeviceTensor]) -> bool:
    """Whether an operation indexes with integers, so that its output shape is known, not a mask."""
    is_mask = any(x.dtype in (torch.bool, torch.uint8) for x in ours[1:])
    return func in (aten.index.Tensor, aten.index_put_.default) and not is_mask


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return DeviceTensor(torch.empty(size, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _values(target).copy_(_values(source))
    return target


# Kernels for operations that bypass the dispatch mode, such as `torch.tensor(..., device=...)`.
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
_KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
