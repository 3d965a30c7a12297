"""Every program by name, with what an expert reads in its profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.field import engines, megatron, newer, nsight, nsight_programs, training, zero
from support.field.machine import Machine


@dataclass(frozen=True)
class Truth:
    """What is true of a profile.

    Attributes:
        framework: the software; None where nothing tells it.
        dimensions: those of its communication.
        diagnoses: all that an expert would make.
        steps: how many whole ones the recording has; None where it has none.
        unit: what they are.
        says: words that must be in the report.
        never: words that must not.
    """

    framework: str | None
    dimensions: set[str]
    diagnoses: set[str]
    steps: int | None
    unit: str = "step"
    says: Sequence[str] = ()
    never: Sequence[str] = ()


@dataclass(frozen=True)
class Program:
    """A program and the truth about it; with `nsys`, it is recorded with Nsight Systems."""

    run: Callable[[], Machine]
    truth: Truth
    nsys: Sequence[nsight.Communicator] | None = field(default=None)

    def write(self, folder: Path, name: str) -> str:
        """Run it and write its profile; returns the path."""
        if self.nsys is not None:
            return nsight.write(self.run(), folder / f"{name}.sqlite", self.nsys)
        return self.run().write(folder / f"{name}.json")


_MEGATRONS = (
    "tp_comm_overlap",
    "--overlap-grad-reduce",
    "overlap_param_gather",
    "overlapkit explain",
)
_ENGINE = ("micro-batch", "a step", "the step", "bucket", "loss")

PROGRAMS: dict[str, Program] = {
    # Wrappers of PyTorch.
    "torch 1.8 ddp": Program(
        training.torch_1_8_ddp, Truth("ddp", {"DP"}, set(), 4, never=_MEGATRONS)
    ),
    "torch 2.8 ddp": Program(
        training.torch_2_8_ddp, Truth("ddp", {"DP"}, set(), 4, never=_MEGATRONS)
    ),
    "rocm ddp": Program(training.rocm_ddp, Truth("ddp", {"DP"}, set(), 4, never=_MEGATRONS)),
    "ddp, slow data": Program(
        training.torch_2_1_ddp_waiting_for_data,
        Truth("ddp", {"DP"}, {"waits-for-data"}, 4, says=["num_workers"]),
    ),
    "ddp, buffers": Program(
        training.ddp_with_buffers,
        Truth(
            "ddp",
            {"DP"},
            {"exposed-communication"},
            4,
            says=["broadcast_buffers=False"],
            never=["bucket_cap_mb", *_MEGATRONS],
        ),
    ),
    "trainer": Program(
        training.trainer_without_steps,
        Truth("ddp", {"DP"}, set(), 3, says=["each repetition is a step"], never=_MEGATRONS),
    ),
    "lightning": Program(training.lightning_ddp, Truth("ddp", {"DP"}, set(), 4)),
    "fsdp1": Program(
        training.fsdp1,
        Truth(
            "fsdp1",
            {"DP"},
            {"param-gather-exposed", "exposed-communication"},
            3,
            says=["auto_wrap_policy"],
            never=_MEGATRONS,
        ),
    ),
    "fsdp2": Program(
        training.torchtitan_fsdp, Truth("fsdp2", {"DP"}, set(), 3, never=_MEGATRONS)
    ),
    "fsdp2 x tp": Program(
        training.torchtitan_fsdp_tp,
        Truth(
            "fsdp2",
            {"DP", "TP"},
            {"tp-overlap-off"},
            3,
            says=["asynchronous tensor parallelism"],
            never=_MEGATRONS,
        ),
    ),
    "fsdp2 without prefetch": Program(
        lambda: training.fsdp2(prefetch=False, gather_us=400),
        Truth(
            "fsdp2",
            {"DP"},
            {"param-gather-exposed"},
            3,
            says=["set_modules_to_forward_prefetch"],
            never=_MEGATRONS,
        ),
    ),
    "pipelining": Program(
        training.torchtitan_pipeline,
        Truth(None, {"PP"}, {"pipeline-exposed"}, 3, says=["interleaved"], never=_MEGATRONS),
    ),
    # DeepSpeed.
    "zero 1": Program(
        lambda: zero.deepspeed(1, overlap=False),
        Truth(
            "deepspeed",
            {"DP"},
            {"grad-reduce-after-backward", "param-gather-exposed"},
            3,
            says=["overlap_comm"],
            never=_MEGATRONS,
        ),
    ),
    "zero 2": Program(
        lambda: zero.deepspeed(2), Truth("deepspeed", {"DP"}, {"param-gather-exposed"}, 3)
    ),
    "zero 2 without overlap": Program(
        lambda: zero.deepspeed(2, overlap=False),
        Truth("deepspeed", {"DP"}, {"grad-reduce-after-backward", "param-gather-exposed"}, 3),
    ),
    "zero 3": Program(
        lambda: zero.deepspeed(3),
        Truth(
            "deepspeed",
            {"DP"},
            {"param-gather-exposed", "exposed-communication"},
            3,
            says=["stage3_prefetch_bucket_size"],
            never=_MEGATRONS,
        ),
    ),
    "zero 3, prefetched": Program(
        lambda: zero.deepspeed(3, prefetch=2), Truth("deepspeed", {"DP"}, set(), 3)
    ),
    "zero 3, nothing names it": Program(
        lambda: zero.deepspeed(3, stacks=False),
        Truth(
            None,
            {"DP"},
            {"exposed-communication"},
            3,
            says=["assigned by operation"],
            never=("zero_optimization", *_MEGATRONS),
        ),
    ),
    # Megatron-Core.
    "megatron": Program(
        lambda: megatron.Megatron(pipeline=True).run(microbatches=8),
        Truth(
            "megatron", {"TP", "PP", "DP", "other"}, {"tp-overlap-off", "pipeline-exposed"}, 3
        ),
    ),
    "megatron, groups not described": Program(
        lambda: megatron.Megatron(pipeline=True, described=False).run(microbatches=8),
        Truth(
            "megatron",
            {"TP", "PP", "DP", "other"},
            {"tp-overlap-off", "pipeline-exposed"},
            3,
            says=["listed as other"],
        ),
    ),
    "megatron, experts": Program(
        lambda: megatron.Megatron(experts="alltoall").run(),
        Truth(
            "megatron",
            {"TP", "DP", "EP", "other"},
            {"expert-exchange-exposed", "tp-overlap-off"},
            3,
            never=["pipeline"],
        ),
    ),
    "megatron, deepep": Program(
        lambda: megatron.Megatron(experts="deepep", stacks=False, tensor=False).run(),
        Truth("megatron", {"DP", "EP", "other"}, {"expert-exchange-exposed"}, 3),
    ),
    "megatron, late reductions": Program(
        lambda: megatron.Megatron(overlap=False, tensor=False).run(microbatches=1, layers=8),
        Truth("megatron", {"DP", "other"}, {"grad-reduce-after-backward"}, 3),
    ),
    "megatron, userbuffers": Program(
        lambda: megatron.Megatron(userbuffers=True).run(),
        Truth("megatron", {"TP", "DP", "other"}, set(), 3, never=["TP overlap is off"]),
    ),
    # Inference engines.
    "vllm": Program(
        engines.vllm_decode,
        Truth(
            "vllm",
            {"TP"},
            {"exposed-communication", "waits-for-host"},
            8,
            "iteration",
            says=["an iteration", "asynchronous"],
            never=_ENGINE,
        ),
    ),
    "vllm, no ranges": Program(
        lambda: engines.vllm_decode(named=False),
        Truth(
            "vllm",
            {"TP"},
            {"exposed-communication", "waits-for-host"},
            8,
            "iteration",
            says=["each repetition is an iteration"],
            never=_ENGINE,
        ),
    ),
    "vllm, prefill and decode": Program(
        engines.vllm_mixed,
        Truth(
            "vllm",
            {"TP"},
            {"exposed-communication"},
            9,
            "iteration",
            says=["6 x decode", "3 x prefill"],
            never=_ENGINE,
        ),
    ),
    "sglang": Program(
        engines.sglang_decode,
        Truth("sglang", {"TP"}, {"exposed-communication"}, 8, "iteration", never=_ENGINE),
    ),
    "sglang, deepep": Program(
        engines.sglang_prefill_deepep,
        Truth("sglang", {"EP"}, {"expert-exchange-exposed"}, 4, "iteration", never=_ENGINE),
    ),
    "tensorrt-llm": Program(
        engines.trtllm_decode,
        Truth("tensorrt_llm", {"TP"}, {"exposed-communication"}, 6, "iteration", never=_ENGINE),
    ),
    "tensorrt-llm, no ranges": Program(
        lambda: engines.trtllm_decode(named=False),
        Truth(
            "engine",
            {"TP"},
            {"exposed-communication"},
            6,
            "iteration",
            says=["an inference engine"],
            never=("beside the matrix products", *_ENGINE),
        ),
    ),
    "one gpu": Program(
        engines.one_gpu, Truth(None, set(), set(), None, never=("a step", "the step"))
    ),
    # Newer libraries.
    "fsdp2, copy engines": Program(
        newer.fsdp2_copy_engine, Truth("fsdp2", {"DP"}, set(), 3, never=_MEGATRONS)
    ),
    "fsdp2, copy engines, no prefetch": Program(
        lambda: newer.fsdp2_copy_engine(prefetch=False, copy_us=60),
        Truth(
            "fsdp2",
            {"DP"},
            {"param-gather-exposed"},
            3,
            # A collective's size is that of seven copies together.
            says=["DP all_gather 336 - 10.08 -", "set_modules_to_forward_prefetch"],
        ),
    ),
    "megatron, nccl ep": Program(
        newer.megatron_nccl_ep,
        Truth(
            "megatron",
            {"DP", "EP"},
            {"expert-exchange-exposed", "grad-reduce-after-backward"},
            3,
            never=["nccl_ep_jit_ht_scan"],
        ),
    ),
    "generate and train": Program(
        newer.generate_and_train,
        Truth(
            None,
            {"TP", "DP"},
            {"param-gather-exposed"},
            3,
            never=["inference engine", "settings of training", *_MEGATRONS],
        ),
    ),
    "compiled fsdp": Program(
        newer.compiled_step, Truth(None, {"DP"}, set(), 3, never=["share SMs", "times as long"])
    ),
    "asynchronous tp": Program(
        newer.asynchronous_tp, Truth("torchtitan", {"TP"}, set(), 3, never=_MEGATRONS)
    ),
    "asynchronous tp, slow link": Program(
        lambda: newer.asynchronous_tp(copy_us=60),
        Truth(
            "torchtitan",
            {"TP"},
            {"exposed-communication"},
            3,
            # It is on already.
            never=["enable_async_tensor_parallel", *_MEGATRONS],
        ),
    ),
    "rocm ddp, direct": Program(
        newer.rocm_ddp_direct, Truth("ddp", {"DP"}, set(), 4, never=_MEGATRONS)
    ),
    "nvls ddp": Program(newer.nvls_ddp, Truth("ddp", {"DP"}, set(), 4, never=_MEGATRONS)),
    "vllm, two stages": Program(
        lambda: newer.vllm_graphs(symmetric=False),
        Truth("vllm", {"TP"}, {"exposed-communication"}, 6, "iteration", never=_ENGINE),
    ),
    "vllm, symmetric": Program(
        lambda: newer.vllm_graphs(symmetric=True),
        Truth("vllm", {"TP"}, {"exposed-communication"}, 6, "iteration", never=_ENGINE),
    ),
    "vllm, two cycles": Program(
        lambda: newer.vllm_graphs(symmetric=False, cycles=2),
        Truth("vllm", {"TP"}, {"exposed-communication"}, 12, "iteration", never=_ENGINE),
    ),
    "a step that only evaluates": Program(
        newer.loss_only_steps,
        Truth(None, {"PP"}, set(), 4, says=["ProfilerStep#2 is 2.700 ms"], never=_MEGATRONS),
    ),
    # Nsight Systems.
    "nsys megatron": Program(
        nsight_programs.megatron,
        Truth(
            "megatron",
            {"PP", "other"},
            {"exposed-communication"},
            3,
            says=["of communicator a10000000000"],
        ),
        (nsight_programs.TP, nsight_programs.DP, nsight_programs.PP),
    ),
    # The backward pass and the optimizer launch without ranges in the same communicators.
    "nsys megatron, transformer engine": Program(
        lambda: nsight_programs.megatron(layers="te"),
        Truth(
            "megatron", {"PP", "TP", "other"}, {"tp-overlap-off", "exposed-communication"}, 3
        ),
        (nsight_programs.TP, nsight_programs.DP, nsight_programs.PP),
    ),
    "nsys megatron, operators of pytorch": Program(
        lambda: nsight_programs.megatron(layers="pytorch"),
        Truth(
            "megatron",
            {"PP", "TP", "DP"},
            {"tp-overlap-off", "grad-reduce-after-backward"},
            3,
        ),
        (nsight_programs.TP, nsight_programs.DP, nsight_programs.PP),
    ),
    "nsys megatron, no ranges": Program(
        lambda: nsight_programs.megatron(ranges=False),
        Truth(None, {"other"}, {"exposed-communication"}, 3, never=_MEGATRONS),
        (),
    ),
    "nsys deepspeed": Program(
        nsight_programs.deepspeed,
        Truth("deepspeed", {"DP"}, {"param-gather-exposed"}, 4, never=_MEGATRONS),
        (),
    ),
    "nsys jax": Program(
        nsight_programs.jax,
        Truth(None, {"other"}, set(), 4, says=["No diagnosis"], never=_MEGATRONS),
        (),
    ),
    "nsys tensorrt-llm": Program(
        engines.trtllm_decode,
        Truth("tensorrt_llm", {"TP"}, {"exposed-communication"}, 6, "iteration", never=_ENGINE),
        (),
    ),
}  # fmt: skip
