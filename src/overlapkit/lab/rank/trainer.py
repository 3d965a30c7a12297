"""Trains one variant, step by step, with Megatron-Core's own schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from numpy.typing import NDArray

from overlapkit.lab import corpus
from overlapkit.lab.rank.build import Built, enter_layout
from overlapkit.lab.rank.gathered import Content, by_name, gathered
from overlapkit.lab.rank.weights import digest

_APART = 10_007
"""Steps between the data of two runs that have other data."""

_EVALUATION = 1_000_000
"""The step whose data an evaluation has."""


class Trainer:
    """A variant's model, optimizer and position in the data.

    Args:
        built: model chunks and optimizer.
        tokens: the corpus.
        device: "cpu" or "cuda".
        data: another number is other data.
    """

    def __init__(self, built: Built, tokens: NDArray[Any], device: str, *, data: int = 0) -> None:
        self.built = built
        self.losses: list[torch.Tensor] = []
        self.evaluations: list[torch.Tensor] = []
        self.steps = 0
        self._tokens = tokens
        self._first = data * _APART
        self._device = device
        model, train = built.config.model, built.config.train
        self._length: int = model.seq_length
        # Not all microbatches have the same length then; shards of the sequence stay equally long.
        self._shorter = self._length // 4 if model.variable_seq_lengths else 0
        self._batch: int = train.micro_batch_size or 1
        self._ranks = parallel_state.get_data_parallel_world_size()
        self._rank = parallel_state.get_data_parallel_rank()
        self._microbatches = train.num_microbatches(self._ranks)
        self._positions = torch.arange(self._length, device=device).expand(
            self._batch, self._length
        )
        future = torch.ones(self._length, self._length, dtype=torch.bool, device=device).triu(1)
        # Transformer Engine makes the causal mask itself.
        self._mask = None if model.transformer_impl != "local" else future[None, None]

    def follow(self, other: Trainer) -> None:
        """Go on where another trainer of the same variant is, with its record of losses."""
        self.steps, self.losses, self.evaluations = other.steps, other.losses, other.evaluations

    def enter(self) -> None:
        """Make this variant's layout the current one in Megatron-Core."""
        enter_layout(self.built.config)

    def step(self) -> None:
        """One optimizer step over the global batch; its mean loss is appended to `losses`."""
        self.gradients_only()
        self.built.optimizer.step()

    def gradients_only(self) -> None:
        """The first part of a step: everything before the optimizer's."""
        for chunk in self.built.chunks:
            chunk.zero_grad_buffer()
        self.built.optimizer.zero_grad()
        self.accumulate()

    def accumulate(self) -> None:
        """Forward and backward of every microbatch, and the reduction of the gradients."""
        self._pass_over_batch(forward_only=False)
        self.steps += 1
        if self._losses:
            self.losses.append(torch.stack(self._losses).mean())

    def evaluate(self) -> None:
        """Forward of one global batch in evaluation mode; its loss goes to `evaluations`.

        Every evaluation has the same data, which no step has.
        """
        steps, self.steps = self.steps, _EVALUATION
        for chunk in self.built.chunks:
            chunk.eval()
            # As training loops do: weights are complete, and nothing waits for a gather.
            if chunk.use_forward_hook:
                chunk.disable_forward_pre_hook()
        with torch.no_grad():
            self._pass_over_batch(forward_only=True)
        for chunk in self.built.chunks:
            chunk.train()
            if chunk.use_forward_hook:
                chunk.enable_forward_pre_hook()
        self.steps = steps
        if self._losses:
            self.evaluations.append(torch.stack(self._losses).mean())

    def _pass_over_batch(self, *, forward_only: bool) -> None:
        self._losses: list[torch.Tensor] = []
        chunks = self.built.chunks
        iterators = [iter(range(self._microbatches)) for _ in chunks]
        get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=self._microbatches,
            seq_length=self._length,
            micro_batch_size=self._batch,
            forward_only=forward_only,
        )

    def compute(self) -> None:
        """Forward and backward of every microbatch without any reduction of gradients.

        Only for a model without pipeline and overlap, which would communicate during the pass.
        """
        config = self.built.config.model
        finalize, config.finalize_model_grads_func = config.finalize_model_grads_func, None
        try:
            for chunk in self.built.chunks:
                chunk.zero_grad_buffer()
            self.accumulate()
        finally:
            config.finalize_model_grads_func = finalize

    def _forward(
        self, microbatches: Any, chunk: Any
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, Any]]]]:
        inputs, labels = self._samples(next(microbatches))
        length = inputs.shape[1]
        mask = None if self._mask is None else self._mask[..., :length, :length]
        output = chunk(inputs, self._positions[:, :length], mask, labels=labels)
        return output, self._loss

    def _loss(self, per_token: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        loss = per_token.float().mean()
        # The schedule divides the returned loss in place.
        self._losses.append(loss.detach().clone())
        return loss, {}

    def _samples(self, microbatch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of a microbatch, both [micro batch, sequence].

        The numbering makes a single rank without data parallelism see the microbatches of all
        ranks: first microbatch 0 of each rank, then microbatch 1 of each rank, …
        """
        per_step = self._microbatches * self._ranks
        number = (self._first + self.steps) * per_step + microbatch * self._ranks + self._rank
        rows = [
            torch.from_numpy(corpus.sample(self._tokens, number * self._batch + row, self._length))
            for row in range(self._batch)
        ]
        block = torch.stack(rows)
        if self._device == "cuda":
            # A copy from unpinned memory would wait for the GPU.
            block = block.pin_memory()
        block = block.to(self._device, non_blocking=True)
        block = block[:, : self._length + 1 - self._shorter * (number % 3)]
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def finish(self) -> None:
        """Gather the parameters that an overlapped gather leaves for the next forward."""
        ddp = self.built.config.ddp
        # Without the distributed optimizer Megatron-Core ignores the knob.
        if ddp.overlap_param_gather and ddp.use_distributed_optimizer:
            for chunk in self.built.chunks:
                chunk.start_param_sync(force_sync=True)

    def bare_chunks(self) -> list[Any]:
        """The model chunks without wrappers."""
        from megatron.core.utils import get_attr_wrapped_model

        return [
            get_attr_wrapped_model(c, "decoder", return_model_obj=True) for c in self.built.chunks
        ]

    def digest(self) -> str:
        """One hash of this rank's weights."""
        return digest(p for chunk in self.built.chunks for p in chunk.parameters())

    def gradients(self) -> dict[str, torch.Tensor]:
        """Copies of the reduced gradients by "chunk:parameter", between the parts of a step."""
        return self._gathered("grad_data")

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights as the optimizer left them, by "chunk:parameter"."""
        return self._gathered("param_data")

    def _gathered(self, content: Content) -> dict[str, torch.Tensor]:
        values: dict[torch.nn.Parameter, torch.Tensor] = {}
        for chunk in self.built.chunks:
            values |= gathered(chunk, content)
        return by_name(self.bare_chunks(), values)

    def tensor_bytes(self) -> int:
        """Bytes of weights, gradient buffers and optimizer state."""
        total = 0
        for chunk in self.built.chunks:
            total += sum(p.numel() * p.element_size() for p in chunk.parameters())
            for buffer in chunk.buffers + chunk.expert_parallel_buffers:
                total += buffer.grad_data.numel() * buffer.grad_data.element_size()
        optimizers = getattr(self.built.optimizer, "chained_optimizers", [self.built.optimizer])
        for optimizer in optimizers:
            inner = getattr(optimizer, "optimizer", None)
            for state in (inner.state if inner is not None else {}).values():
                total += sum(
                    value.numel() * value.element_size()
                    for value in state.values()
                    if isinstance(value, torch.Tensor)
                )
        return total
