"""Makes Megatron-Core run on the CPU, until the process ends.

In many places Megatron-Core 0.16 uses the current CUDA device, streams and CUDA tensors, whatever
device its tensors are on. No computation is simulated here: devices become "cpu", and streams do
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoStream:
    """A stream, or an event on it, that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., _NoStream]:
        return lambda *args, **kwargs: self

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


def _on_cpu(value: Any) -> Any:
    named_cuda = isinstance(value, str) and value.startswith("cuda")
    if named_cuda or (isinstance(value, torch.device) and value.type == "cuda"):
        return "cpu"
    return value


class _CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]
    """Redirects tensors from CUDA to the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(map(_on_cpu, args))
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        result = func(*args, **named)
        # The distributed optimizer recognizes parameters by the CUDA name of their type.
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


_installed = False


def stand_in_for_cuda() -> None:
    """Install the stand-in, once. Call it before any object of Megatron-Core is built."""
    global _installed
    if _installed:
        return
    _installed = True
    from megatron.core.tensor_parallel import random
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    # Without Transformer Engine the router of experts uses a name that was not imported.
    vars(moe_utils).setdefault("te_general_gemm", None)
    # Megatron-Core converts the sizes of an all-to-all to numbers only if they are on a GPU.
    token_dispatcher.maybe_move_tensor_to_cpu = lambda sizes, as_numpy=False, record_stream=False: (
        sizes.numpy() if as_numpy and isinstance(sizes, torch.Tensor) else sizes
    )
    stream = _NoStream()
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: stream
    torch.cuda.Stream = lambda *args, **kwargs: _NoStream()
    torch.cuda.stream = lambda of: nullcontext()
    torch.cuda.synchronize = lambda device=None: None
    # Recomputation saves and restores the state of CUDA's random numbers; there is none.
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.empty(0)
    random._set_cuda_rng_state = lambda *args, **kwargs: None
    CudaRNGStatesTracker.fork = lambda self, name="": nullcontext()
    _CudaMeansCpu().__enter__()
