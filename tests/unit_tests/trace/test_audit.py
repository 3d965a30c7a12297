"""Every sentence that `trace` and `compare` can say is said where it is true, and not elsewhere.

A sentence of the source that no row speaks of fails the last test.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest

from overlapkit.trace.diagnose.diagnosis import DIAGNOSES
from support.field.situations import SITUATIONS
from support.sentences import unknown
from support.trace_answers import Answer


class Pair(NamedTuple):
    """A situation in which something is said, and one in which it is not."""

    says: str
    silent: str


OF_DIAGNOSES: dict[str, Pair] = {
    "single-bucket": Pair("one bucket", "torch 2.8 ddp"),
    "grad-reduce-after-backward": Pair("megatron, late reductions", "megatron"),
    "param-gather-exposed": Pair("fsdp2 without prefetch", "fsdp2"),
    "one-queue": Pair("generated: single queue", "generated: dp overlapped"),
    "layernorm-waits": Pair("generated: layernorm waits", "generated: dp overlapped"),
    "tp-overlap-off": Pair("megatron", "megatron, userbuffers"),
    "pipeline-bubble": Pair("bubble", "pipelining"),
    "pipeline-exposed": Pair("pipelining", "generated: pp interleaved"),
    "expert-exchange-exposed": Pair("megatron, deepep", "generated: ep deepep"),
    "compute-slowed": Pair("generated: slowed compute", "generated: dp overlapped"),
    "copies-exposed": Pair("pageable", "torch 2.8 ddp"),
    "bandwidth-bound": Pair("bandwidth", "one bucket"),
    "exposed-communication": Pair("fsdp1", "torch 2.8 ddp"),
    "waits-for-data": Pair("ddp, slow data", "host late"),
    "waits-for-host": Pair("host late", "ddp, slow data"),
    "device-idle": Pair("waits elsewhere", "host late"),
    "late-rank": Pair("generated: late rank", "two ranks"),
}

OF_SENTENCES: dict[str, Pair] = {
    # The step, and what is read.
    "no steps are marked: all figures are of the whole trace": Pair("one gpu", "torch 2.8 ddp"),
    "no steps are marked: the same sequence of": Pair("trainer", "torch 2.8 ddp"),
    "kernels repeats, and each repetition is a step": Pair("trainer", "vllm, no ranges"),
    "each repetition is an iteration": Pair("vllm, no ranges", "trainer"),
    "the recording ends in": Pair("cut", "torch 2.8 ddp"),
    ", which lacks kernels of the steps before it: omitted": Pair("cut", "torch 2.8 ddp"),
    "the file is truncated: it ends in the middle of its events": Pair("truncated", "cut"),
    "omitted: less than 1 % of the busiest device's work": Pair("stray device", "two ranks"),
    "the iterations are of different batches:": Pair("vllm, prefill and decode", "vllm"),
    "; other medians, and what diagnoses cost, are of all": Pair(
        "vllm, prefill and decode", "sglang"
    ),
    "An all_to_all is no pipeline's exchange, although both run SendRecv kernels: experts "
    "exchange tokens with it, and context parallelism or Ulysses heads.": Pair(
        "nameless exchange", "no operation"
    ),
    ", too little to tell without ProfilerStep#13": Pair("checkpoint", "host late"),
    "longer than the": Pair("late batch", "torch 2.8 ddp"),
    "median:": Pair("late batch", "torch 2.8 ddp"),
    "ms more": Pair("late batch", "torch 2.8 ddp"),
    "waiting for data at the start of the next step on the host": Pair(
        "late batch", "late batch, taken ahead"
    ),
    "waiting for the host at the start of the next step on the host": Pair(
        "late host", "late batch"
    ),
    "steps are ranges on the host:": Pair("without launches", "torch 2.8 ddp"),
    "the trace has no launches that connect work on the device to them": Pair(
        "without launches", "launched elsewhere"
    ),
    "no launch inside them connects work to a step": Pair("launched elsewhere", "without launches"),
    "device events have no launch in the trace: where a step begins is known from the others": Pair(
        "loose", "torch 2.8 ddp"
    ),
    "steps launched no work on the device, omitted": Pair("empty step", "torch 2.8 ddp"),
    "ranges on the device hold": Pair("short ranges", "torch 2.8 ddp"),
    "% of the work between them: a step runs from the start of one to that of the next, and the "
    "last is omitted": Pair("short ranges", "generated: dp overlapped"),
    "no device work: gloo's ranges are measured as communication, and the outermost operators of "
    "the trainer's threads as compute": Pair("cpu", "gloo"),
    "gloo ranges on the host are measured as communication": Pair("gloo", "torch 2.8 ddp"),
    # How far it can be relied on.
    "% of the device's work is inside": Pair("work outside", "torch 2.8 ddp"),
    "s do not stand for the trace, and no diagnosis rests on them.": Pair(
        "work outside", "trainer"
    ),
    "% of the communication has no known": Pair("nsys jax", "torch 2.8 ddp"),
    "operation or dimension": Pair("no operation", "nsys jax"),
    "): no diagnosis says what it is for. Give --config, or name the groups with --group.": Pair(
        "nsys jax", "torch 2.8 ddp"
    ),
    "nothing tells which dimension some communication belongs to: it is listed as other; give "
    "--config or --group": Pair("nsys jax", "torch 2.8 ddp"),
    "process groups are not described:": Pair("zero 3, nothing names it", "zero 3"),
    "assigned by operation; give --config or --group": Pair("zero 3, nothing names it", "zero 3"),
    "look like communication but are of no known library, and count as compute; --comm REGEX "
    "counts them as communication": Pair("unknown kernels", "stated kernels"),
    "compute and communicate at once, and count as compute": Pair(
        "unknown kernels", "stated kernels"
    ),
    "ms of kernels (": Pair("unknown kernels", "stated kernels"),
    "matches no kernel": Pair("unknown kernels", "stated kernels"),
    "communication, as stated": Pair("stated kernels", "unknown kernels"),
    ": no process group has this name or size": Pair("unknown kernels", "stated kernels"),
    "; groups of": Pair("group by size", "unknown kernels"),
    # Reductions of gradients, gathers of parameters.
    "The gradients are reduced once, after the backward pass, so no compute is left to hide the "
    "reduction": Pair("one bucket", "torch 2.8 ddp"),
    ": they are in a single bucket, or overlap_grad_reduce is off": Pair(
        "generated: one bucket", "one bucket"
    ),
    "start after the backward pass": Pair("zero 1", "zero 2"),
    ": overlap_grad_reduce is off or not in effect": Pair("megatron, late reductions", "zero 1"),
    "The parameters are all-gathered while nothing computes": Pair("zero 3", "fsdp2"),
    ": overlap_param_gather is off or not in effect, or there are too few buckets to hide the "
    "gathers": Pair("generated: dp exposed", "zero 3"),
    "Compute stalls until a queued collective has started. Kernels start only in launch order, as "
    "with CUDA_DEVICE_MAX_CONNECTIONS=1, which this run does not need (it has no tensor-parallel "
    "or context-parallel communication).": Pair("generated: single queue", "generated: tp exposed"),
    ", or set it to what overlapkit explain shows for this run": Pair(
        "generated: single queue", "torch 2.8 ddp"
    ),
    "LayerNorm kernels wait for a running gradient reduction to end: they need every SM, and the "
    "collective occupies some.": Pair("generated: layernorm waits", "generated: dp exposed"),
    "set NVTE_FWD_LAYERNORM_SM_MARGIN and NVTE_BWD_LAYERNORM_SM_MARGIN to 16": Pair(
        "generated: layernorm waits", "torch 2.8 ddp"
    ),
    # Tensor, pipeline and expert parallelism.
    "Tensor-parallel collectives are exposed": Pair("fsdp2 x tp", "megatron"),
    "Tensor-parallel collectives run through NCCL, and there are no userbuffers kernels: TP "
    "overlap is off": Pair("megatron", "fsdp2 x tp"),
    ", and all-reduces show that sequence parallelism is off too": Pair(
        "no sequence parallelism", "megatron"
    ),
    "Send and receive are exposed in the steady state of the pipeline": Pair(
        "pipelining", "megatron, experts"
    ),
    ": without interleaving, nothing runs beside them": Pair("pipeline, configured", "pipelining"),
    ", although the schedule is interleaved: overlap_p2p_comm is off, or the stages are "
    "uneven": Pair("interleaved, configured", "pipeline, configured"),
    "The pipeline fills and drains: in the first and the last sixth of the step, sends and "
    "receives run while nothing computes, for": Pair("bubble", "pipelining"),
    "% of the step more than between.": Pair("bubble", "pipelining"),
    "The token exchange between experts is exposed.": Pair("megatron, experts", "megatron"),
    # Bandwidth.
    "ms of compute could hide it: overlap can save": Pair("bandwidth", "torch 2.8 ddp"),
    "GB/s of bus bandwidth": Pair("bandwidth", "torch 2.8 ddp"),
    ", waits for late ranks included": Pair("bandwidth", "torch 2.8 ddp"),
    "; the switch reduces, so this is not what a link carries": Pair(
        "bandwidth, in the switch", "bandwidth"
    ),
    "; NVLink of this GPU has": Pair("bandwidth", "bandwidth over nodes"),
    "is exposed communication": Pair("fsdp1", "torch 2.8 ddp"),
    ", some of it at once": Pair("exposed at once", "fsdp1"),
    # Idle time, copies, slowed compute.
    "The device is idle while the host waits for the next batch.": Pair("ddp, slow data", "paused"),
    "The host waits for the next batch before the first kernel of": Pair(
        "paused", "ddp, slow data"
    ),
    ". No profiled step holds this time; what the device did then was not recorded.": Pair(
        "paused, one step", "ddp, slow data"
    ),
    "load data in more worker processes (num_workers of DataLoader), with prefetch_factor and "
    "persistent_workers, or prepare it beforehand": Pair("paused", "host late"),
    "The device is idle until the host launches the next work.": Pair(
        "host late", "waits elsewhere"
    ),
    "launch less or earlier: CUDA graphs or torch.compile, a larger micro-batch, fewer "
    "synchronizations (.item(), prints, checks of the loss), no garbage collection inside the "
    "step": Pair("host late", "vllm"),
    "let the engine prepare the next batch while the device computes (asynchronous, or overlapped, "
    "scheduling), decode with CUDA graphs, and serve more requests in a batch": Pair(
        "vllm", "host late"
    ),
    "Neither operators nor communication run: Python code, other processes, or waits": Pair(
        "cpu", "waits elsewhere"
    ),
    "record with with_stack=True to see what runs": Pair("cpu", "waits elsewhere"),
    "The device is idle; the trace has no launches, so it does not show whether the host is "
    "late": Pair("idle without launches", "waits elsewhere"),
    "record the host too (ProfilerActivity.CPU, or nsys with --trace=cuda,nvtx)": Pair(
        "idle without launches", "waits elsewhere"
    ),
    "The device is idle, and the work that follows had been launched: it waits for work on other "
    "streams, or for other ranks": Pair("waits elsewhere", "host late"),
    "look at what the streams wait for": Pair("waits elsewhere", "host late"),
    "; with a pipeline, use more microbatches": Pair("pipeline waits", "waits elsewhere"),
    "waiting for data": Pair("ddp, slow data", "host late"),
    "waiting for the host": Pair("host late", "waits elsewhere"),
    "Copies and memsets run while nothing computes or communicates": Pair(
        "pageable", "torch 2.8 ddp"
    ),
    ", most of all": Pair("pageable", "torch 2.8 ddp"),
    "copy from pinned memory (pin_memory=True of DataLoader) with non_blocking=True, ahead of "
    "use": Pair("pageable", "pinned"),
    "the memory is pinned already: copy the next batch on a separate stream while this one "
    "computes": Pair("pinned", "pageable"),
    "copy results to the host less often (.item(), .cpu(), logging): each copy that the host waits "
    "for also stops the launching of work": Pair("to host", "pinned"),
    "the copies go to pinned memory, as those of offloading do: begin them earlier, on a separate "
    "stream, so that compute is left to hide them, or copy less": Pair(
        "to pinned memory", "to host"
    ),
    "avoid these copies and memsets, or run them on a separate stream beside compute": Pair(
        "on device", "to host"
    ),
    "copy from pinned memory on a separate stream, ahead of use": Pair("plain copies", "pinned"),
    "times as long while communication runs: they share SMs and memory bandwidth with it.": Pair(
        "generated: slowed compute", "torch 2.8 ddp"
    ),
    "give communication fewer SMs (": Pair("generated: slowed compute", "torch 2.8 ddp"),
    "NCCL_MAX_CTAS); hidden communication is not free": Pair(
        "generated: slowed compute", "torch 2.8 ddp"
    ),
    "Compute beside communication takes": Pair("generated: slowed compute", "torch 2.8 ddp"),
    "times as long as alone (": Pair("generated: slowed compute", "torch 2.8 ddp"),
    ", of which other diagnoses count up to": Pair("nsys megatron, transformer engine", "megatron"),
    "ms lost over": Pair("generated: slowed compute", "torch 2.8 ddp"),
    # Several ranks.
    "is the slowest; the ranks differ by": Pair("slow rank", "two ranks"),
    "he ranks differ by": Pair("slow rank", "two ranks"),
    "The ranks' steps are equally long.": Pair("two ranks", "slow rank"),
    "Waiting for late ranks is": Pair("two ranks", "torch 2.8 ddp"),
    "% of exposed communication": Pair("two ranks", "torch 2.8 ddp"),
    "; the late rank is rank": Pair("generated: late rank", "two ranks"),
    "Other ranks wait for rank": Pair("generated: late rank", "two ranks"),
    ": it joins collectives last, and waiting is": Pair("generated: late rank", "two ranks"),
    "% of all exposed communication.": Pair("generated: late rank", "two ranks"),
    "check that rank: clocks and temperature, data loading, an uneven stage or expert load; more "
    "overlap does not help": Pair("generated: late rank", "two ranks"),
    "ranks were measured in different steps:": Pair("other steps", "two ranks"),
    ": ranks have different numbers of calls, which are not matched": Pair(
        "other calls", "two ranks"
    ),
    "not every file states its rank: ranks follow the order of files and devices": Pair(
        "nameless", "two ranks"
    ),
    "is also the rank of": Pair("rank twice", "two ranks"),
    # compare.
    "Slower by more than": Pair("compare: slower", "compare: same"),
    "Faster by more than": Pair("compare: faster", "compare: same"),
    "No change larger than": Pair("compare: same", "compare: slower"),
    "the spread of the": Pair("compare: uneven", "compare: slower"),
    ", by which equal runs can differ.": Pair("compare: slower", "compare: uneven"),
    "marks no steps and repeats no sequence of kernels, and the length of a recording says nothing "
    "about speed": Pair("compare: no steps", "compare: same"),
    "ms of the trace": Pair("compare: no steps", "compare: same"),
    ", and it takes": Pair("compare: two steps", "compare: same"),
    "to tell a change from chance": Pair("compare: two steps", "compare: same"),
    "s of the two runs have": Pair("compare: repeated", "compare: same"),
    "kernels: they may not be the same work": Pair("compare: repeated", "compare: same"),
    "the iterations are of different batches (": Pair("compare: batches", "compare: same"),
    "the iterations of": Pair("compare: mixed batches", "compare: batches"),
    "are of different batches": Pair("compare: mixed batches", "compare: same"),
    "one is a CPU trace, the other a GPU trace": Pair("compare: cpu", "compare: same"),
    "different world sizes (": Pair("compare: worlds", "compare: same"),
    "different numbers of profiled ranks (": Pair("compare: more ranks", "compare: same"),
    "Profiled ranks": Pair("compare: more ranks", "compare: more gpus of a process"),
    "Profiled GPUs": Pair("compare: more gpus of a process", "compare: more ranks"),
    "different numbers of profiled GPUs (": Pair(
        "compare: more gpus of a process", "compare: more ranks"
    ),
    "ranks or GPUs": Pair("compare: a process or ranks", "compare: more ranks"),
    "different GPUs (": Pair("compare: gpus", "compare: same"),
    "numbers of kernels per": Pair("compare: more kernels", "compare: same"),
    "differ by an order of magnitude (": Pair("compare: many kernels", "compare: more kernels"),
    "): make sure that both": Pair("compare: more kernels", "compare: same"),
    "s do the same work": Pair("compare: more kernels", "compare: same"),
    "the time between": Pair("compare: between", "compare: same"),
    "s, which belongs to none, changed from": Pair("compare: between", "compare: same"),
    "us: check the host (data loading, logging)": Pair("compare: between", "compare: same"),
    "only": Pair("compare: only one has steps", "compare: same"),
    "% of the device's work is inside its": Pair("compare: outside", "compare: same"),
    ": ranks have different steps; only the": Pair(
        "compare: other ranks' steps", "compare: more ranks"
    ),
    "that all of them have are used": Pair("compare: other ranks' steps", "compare: more ranks"),
    ": its traces state different": Pair("compare: other gpus", "compare: more ranks"),
    "The configurations lead to the same decisions: no overlap setting explains the change.": Pair(
        "compare: same configurations", "compare: a setting without effect"
    ),
    "no part that it acts on has changed": Pair(
        "compare: a setting without effect", "compare: same configurations"
    ),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """What is answered in a situation."""

    @cache
    def answer(name: str) -> Answer:
        return SITUATIONS[name](tmp_path_factory.mktemp("situation"))

    return answer


def test_every_diagnosis_has_its_pair():
    assert set(OF_DIAGNOSES) == set(DIAGNOSES)


@pytest.mark.parametrize("id", OF_DIAGNOSES)
def test_a_diagnosis_is_made_where_it_is_true_and_not_elsewhere(id, answered):
    pair = OF_DIAGNOSES[id]
    assert id in {d["id"] for d in answered(pair.says).document["diagnoses"]}
    assert id not in {d["id"] for d in answered(pair.silent).document["diagnoses"]}


@pytest.mark.parametrize("sentence", OF_SENTENCES)
def test_a_sentence_is_said_where_it_is_true_and_not_elsewhere(sentence, answered):
    pair = OF_SENTENCES[sentence]
    assert sentence in answered(pair.says).text
    assert sentence not in answered(pair.silent).text


SOURCES = (
    "analyse.py",
    "ranks.py",
    "text.py",
    "compare/comparison.py",
    "compare/side.py",
    "compare/text.py",
    "compare/verdict.py",
    "diagnose/bandwidth.py",
    "diagnose/gradients.py",
    "diagnose/idle.py",
    "diagnose/pipeline.py",
    "diagnose/profile.py",
    "diagnose/ranks.py",
    "measure/found_steps.py",
    "measure/self_check.py",
    "measure/unrecognized.py",
    "read/cpu.py",
    "read/gloo.py",
    "read/kineto.py",
    "read/host/steps.py",
)
"""What says sentences; those on configurations, remedies and damage are in other `test_audit_*`."""

NO_SENTENCES = frozenset(
    {
        # Kinds of problems, and titles.
        "exposed between replicas",
        "exposed context exchange",
        "tensor parallel without sequence parallel",
        "the whole trace",
        "Where the time of",
        "What changed in the",
        # Parts of errors.
        "it has no steps",
        "it has steps",
    }
)


@pytest.mark.parametrize("source", SOURCES)
def test_every_sentence_of_the_source_has_its_pair(source):
    assert unknown(source, [*OF_SENTENCES, *NO_SENTENCES]) == []
