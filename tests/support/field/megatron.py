"""Megatron-Core's training loop, as programs of a `Machine`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from support.field.machine import TORCH_2_6, Machine
from support.field.training import (
    ADAM,
    ALL_GATHER,
    ALL_REDUCE,
    BACKWARD_THREAD,
    GELU,
    GEMM,
    NORM,
    REDUCE_SCATTER,
    SEND_RECV,
    layer,
    step,
)

Group = tuple[str, str, list[int]]

TP: Group = ("11", "TENSOR_MODEL_PARALLEL_GROUP", [0, 1])
PP: Group = ("13", "PIPELINE_MODEL_PARALLEL_GROUP", [0, 8])
DP: Group = ("5", "DATA_PARALLEL_GROUP_WITH_CP", [0, 2, 4, 6])
EP: Group = ("21", "EXPERT_MODEL_PARALLEL_GROUP", [0, 2, 4, 6])
MP: Group = ("9", "MODEL_PARALLEL_GROUP", [0, 1, 8, 9])
CORE = "/opt/megatron-lm/megatron/core"
DISPATCH = (
    "void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*, int*, long*, float*, int*)"
)
COMBINE = "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768, 4096>(__nv_bfloat16*, float*)"


class Megatron:
    """A step of a stage: forward and backward of each microbatch, then the optimizer."""

    def __init__(
        self,
        *,
        stacks: bool = True,
        described: bool = True,
        pipeline: bool = False,
        experts: str | None = None,
        overlap: bool = True,
        tensor: bool = True,
        userbuffers: bool = False,
        sequence: bool = True,
    ) -> None:
        groups = [g for g, on in ((TP, tensor), (PP, pipeline), (EP, experts)) if on]
        self.stacks, self.pipeline, self.experts = stacks, pipeline, experts
        self.overlap, self.tensor, self.userbuffers = overlap, tensor, userbuffers
        self.m = Machine(
            TORCH_2_6,
            world=16,
            groups=[("0", "default_pg", list(range(16))), DP, MP, *groups] if described else [],
        )
        self.described, self.sequence = described, sequence

    def frames(self, *names: str) -> Any:
        return self.m.frames(*(f"{CORE}/{n}" for n in names)) if self.stacks else nullcontext()

    def call(
        self, group: Group, kernel: str, us: float, stream: int, operator: str, after: float
    ) -> float:
        with self.m.range(f"c10d::{operator}"):
            return self.m.collective(
                kernel,
                us,
                stream,
                operator.rstrip("_"),
                group=group if self.described else None,
                after=[after],
                label=f"nccl:{operator.strip('_')}",
            )

    def tp(self, kernel: str, operator: str) -> None:
        """A tensor-parallel collective that the next product needs."""
        if not self.tensor:
            return
        m = self.m
        if self.userbuffers:
            with self.frames("tensor_parallel/layers.py(900): forward"):
                m.kernel("void userbuffers_fp16_sum_inplace_gpu_rr_ag<8>(int, int)", 60, stream=40)
                m.kernel(GEMM, 80)
            return
        with self.frames("tensor_parallel/mappings.py(300): _gather_along_first_dim"):
            if not self.sequence:
                kernel, operator = ALL_REDUCE, "allreduce_"
            done = self.call(TP, kernel, 70, 30, operator, m.free())
        m.kernel(GELU, 5, after=[done])

    def moe(self) -> None:
        m = self.m
        if self.experts is None:
            return
        if self.experts == "deepep":
            with self.frames("transformer/moe/fused_a2a.py(80): forward"):
                done = m.kernel(DISPATCH, 180, stream=50, after=[m.free()])
            m.kernel(GEMM, 150, after=[done])
            with self.frames("transformer/moe/fused_a2a.py(150): forward"):
                done = m.kernel(COMBINE, 200, stream=50, after=[m.free()])
            m.kernel(GELU, 5, after=[done])
            return
        for us in (170, 190):
            with (
                self.frames("transformer/moe/token_dispatcher.py(560): token_dispatch"),
                m.range("c10d::alltoall_base_"),
            ):
                done = m.collective(
                    SEND_RECV,
                    us,
                    50,
                    "all_to_allv",
                    group=EP if self.described else None,
                    after=[m.free()],
                    label="nccl:all_to_all",
                )
            m.kernel(GEMM, 150, after=[done])

    def p2p(self, us: float, called: str, after: float) -> float:
        if not self.pipeline:
            return 0.0
        m = self.m
        with (
            self.frames("pipeline_parallel/p2p_communication.py(250): _p2p_ops"),
            m.range("nccl:coalesced", "annotation"),
        ):
            return m.collective(
                SEND_RECV,
                us,
                60,
                called,
                group=PP if self.described else None,
                after=[after],
                label=f"nccl:{called} 0->1",
            )

    def run(self, *, steps: int = 3, microbatches: int = 4, layers: int = 4) -> Machine:
        m = self.m
        for number in range(10, 10 + steps):
            with step(m, number), self.frames("pipeline_parallel/schedules.py(500): forward_b"):
                gathered = 0.0
                for microbatch in range(microbatches):
                    ready = self.p2p(900 if microbatch == 0 else 80, "recv", 0.0)
                    m.kernel(NORM, 10, after=[ready, gathered])
                    for _ in range(layers):
                        if microbatch == 0:
                            gathered = self.gather(m.free())
                        self.tp(ALL_GATHER, "_allgather_base_")
                        layer(m, 400)
                        self.moe()
                        self.tp(REDUCE_SCATTER, "_reduce_scatter_base_")
                    self.p2p(50, "send", m.free())
                reduced: list[float] = []
                for microbatch in range(microbatches):
                    ready = self.p2p(60, "recv", 0.0)
                    with m.on(BACKWARD_THREAD):
                        m.kernel(NORM, 10, after=[ready])
                        for _ in range(layers):
                            self.tp(ALL_GATHER, "_allgather_base_")
                            done = layer(m, 800, "LinearBackward")
                            self.moe()
                            if microbatch == microbatches - 1 and self.overlap:
                                reduced.append(self.reduce(done))
                    self.p2p(50, "send", m.free())
                if not self.overlap:
                    reduced = [self.reduce(m.free()) for _ in range(layers)]
                with self.frames("optimizer/optimizer.py(300): step"):
                    m.kernel(ADAM, 400, after=reduced)
                    # The norm of the gradients.
                    done = self.call(MP, ALL_REDUCE, 15, 70, "allreduce_", m.free())
                    m.wait(done)
                    m.kernel(ADAM, 400)
                m.wait(m.free())
        return m

    def gather(self, after: float) -> float:
        with self.frames("distributed/param_and_grad_buffer.py(250): start_param_sync"):
            return self.call(DP, ALL_GATHER, 200, 80, "_allgather_base_", after)

    def reduce(self, after: float) -> float:
        with self.frames("distributed/param_and_grad_buffer.py(350): start_grad_sync"):
            return self.call(DP, REDUCE_SCATTER, 400, 82, "_reduce_scatter_base_", after)
