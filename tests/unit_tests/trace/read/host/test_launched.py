"""Which ranges on the host launched a communication, and what their names say of the framework."""

from __future__ import annotations

import sqlite3

import pytest

from overlapkit.trace.analyse import read
from overlapkit.trace.read.host.marks import Names
from support import tiny_trace as tiny

SEND_RECV = "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevKernelArgsStorage<4096ul>)"


def host(name, ts, dur, tid=1, cat="cpu_op", **args):
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 4000,
        "tid": tid,
        "ts": ts,
        "dur": dur,
        "args": args,
    }


def launched(ts, correlation, start, tid=1, name=SEND_RECV):
    return [
        host("cudaLaunchKernel", ts, 2, tid, "cuda_runtime", correlation=correlation),
        tiny.kernel(name, start, 100, stream=20, correlation=correlation),
    ]


def origins_of(path):
    (work,) = read(path)
    return [() if n < 0 else work.origins[n] for n in work.origin.tolist()]


def test_the_open_ranges_of_the_launching_thread_count(tmp_path):
    events = [
        host("aten::mm", 0, 500),
        host("c10d::alltoall_base_", 10, 50),
        host("nccl:all_to_all", 12, 40, cat="user_annotation"),
        *launched(20, 1, 1000),
        *launched(70, 2, 1100),
        host("FSDP::all_gather", 75, 50, tid=2, cat="user_annotation"),
        *launched(80, 3, 1200),
        *launched(80, 4, 1300, tid=2),
        *launched(90, 5, 1400, name=tiny.GEMM),
    ]
    assert origins_of(tiny.write(tmp_path / "t.json", events)) == [
        ("c10d::alltoall_base_", "nccl:all_to_all"),
        (),
        (),
        ("FSDP::all_gather",),
        (),
    ]


def test_ranges_with_equal_starts_nest_by_their_length(tmp_path):
    events = [
        host("nccl:all_to_all", 10, 20, cat="user_annotation"),
        host("c10d::alltoall_", 10, 50),
        *launched(15, 1, 1000),
        *launched(40, 2, 1100),
    ]
    assert origins_of(tiny.write(tmp_path / "t.json", events)) == [
        ("c10d::alltoall_", "nccl:all_to_all"),
        ("c10d::alltoall_",),
    ]


def test_what_the_operator_says_of_the_collective_counts_for_the_kernel(tmp_path):
    says = {
        "Collective name": "all_to_allv",
        "Group size": 8,
        "Process Group Description": "EXPERT_MODEL_PARALLEL_GROUP",
    }
    events = [host("record_param_comms", 10, 50, **says), *launched(20, 1, 1000)]
    (work,) = read(tiny.write(tmp_path / "t.json", events))
    call = work.calls[work.call[0]]
    assert (call.name, call.group_size, call.description) == (
        "all_to_allv",
        8,
        "EXPERT_MODEL_PARALLEL_GROUP",
    )


def test_waiting_for_data_is_known(tmp_path):
    loader = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"
    frame = "torch/utils/data/dataloader.py(628): __next__"
    events = [
        host(loader, 0, 500, cat="user_annotation"),
        host(frame, 100, 500, cat="python_function"),
        *launched(700, 1, 1000),
    ]
    (work,) = read(tiny.write(tmp_path / "t.json", events))
    assert work.data_waits.total == 600_000


def test_nvtx_ranges_of_an_nsight_export_count(tmp_path):
    process = 7 << 24
    connection = sqlite3.connect(tmp_path / "t.sqlite")
    tables = {
        "CUPTI_ACTIVITY_KIND_KERNEL(start, end, deviceId, streamId, correlationId, globalPid, "
        "shortName)": [(1000, 1100, 0, 20, 1, process, "ncclDevKernel_SendRecv")],
        "CUPTI_ACTIVITY_KIND_RUNTIME(start, correlationId, globalTid)": [(20, 1, process + 1)],
        "NVTX_EVENTS(start, end, text, globalTid)": [
            (10, 50, "nccl:all_to_all", process + 1),
            (10, 50, "nccl:send", process + 2),
        ],
    }
    for table, rows in tables.items():
        connection.execute(f"CREATE TABLE {table}")
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table.partition('(')[0]} VALUES ({marks})", rows)
    connection.commit()
    connection.close()
    assert origins_of(str(tmp_path / "t.sqlite")) == [("nccl:all_to_all",)]


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        ("megatron/core/pipeline_parallel/schedules.py(623): forward_backward", "megatron"),
        ("/opt/x/deepspeed/runtime/engine.py(1): step", "deepspeed"),
        ("FSDP::pre_forward", "fsdp2"),
        ("FullyShardedDataParallel.forward", "fsdp1"),
        ("DistributedDataParallel.forward", "ddp"),
        ("vllm/worker/model_runner.py(1): execute_model", "vllm"),
        ("sglang/srt/managers/scheduler.py(1): run_batch", "sglang"),
        ("torchtitan/train.py(1): train_step", "torchtitan"),
        ("aten::mm", None),
        ("mymegatron.py(3): run", None),
    ],
)
def test_names_tell_the_framework(name, framework):
    names = Names()
    _ = names[name]
    _ = names[name]
    assert dict(names.frameworks) == ({} if framework is None else {framework: 1})


def test_operators_and_frames_that_do_not_communicate_are_not_kept():
    names = Names()
    assert not any(
        names[name]
        for name in (
            "aten::all_gather_fake",
            "megatron/core/transformer/transformer_layer.py(473): forward",
            "torch/distributed/distributed_c10d.py(900): get_rank",
            None,
        )
    )


def drawn(name, ts, dur, stream=20):
    """A range that the profiler draws on a stream of device 0."""
    return {
        "ph": "X",
        "cat": "gpu_user_annotation",
        "name": name,
        "pid": 0,
        "tid": stream,
        "ts": ts,
        "dur": dur,
        "args": {"External id": 3},
    }


def test_without_a_launch_the_ranges_on_the_stream_count(tmp_path):
    events = [
        drawn("nccl:all_to_all", 1000, 100),
        drawn("FSDP::all_gather", 990, 500, stream=7),
        tiny.kernel(SEND_RECV, 1000, 100, stream=20),
        tiny.kernel(SEND_RECV, 1200, 100, stream=20),
        tiny.kernel(tiny.ALL_GATHER, 1300, 100, stream=7),
    ]
    assert origins_of(tiny.write(tmp_path / "t.json", events)) == [
        ("nccl:all_to_all",),
        (),
        ("FSDP::all_gather",),
    ]


def test_what_launched_a_kernel_counts_before_what_is_drawn_around_it(tmp_path):
    events = [
        host("nccl:all_to_all", 10, 50, cat="user_annotation"),
        *launched(20, 1, 1000),
        drawn("nccl:coalesced", 1000, 100),
    ]
    assert origins_of(tiny.write(tmp_path / "t.json", events)) == [("nccl:all_to_all",)]


def test_ranges_on_a_stream_do_not_wait_for_data(tmp_path):
    events = [drawn("get_batch", 900, 300), *launched(20, 1, 1000)]
    (work,) = read(tiny.write(tmp_path / "t.json", events))
    assert work.data_waits.total == 0


def test_the_launch_of_a_cuda_graph_says_nothing_of_its_kernels(tmp_path):
    described = {"Process Group Description": "EXPERT_MODEL_PARALLEL_GROUP", "Group size": 4}
    events = [
        host("nccl:all_to_all", 10, 50, cat="user_annotation"),
        host("cudaGraphLaunch", 20, 5, cat="cuda_runtime", correlation=1),
        tiny.kernel(SEND_RECV, 1000, 100, stream=20, correlation=1, **described),
        tiny.kernel(tiny.GEMM, 1000, 100, correlation=1),
        tiny.kernel(tiny.ALL_GATHER, 1200, 100, stream=20, correlation=1),
    ]
    path = tiny.write(tmp_path / "t.json", events)
    assert origins_of(path) == [(), (), ()]
    (work,) = read(path)
    assert [work.calls[c].description for c in work.call.tolist() if c >= 0] == [
        "EXPERT_MODEL_PARALLEL_GROUP"
    ]


@pytest.mark.parametrize("runtime", ["xpu_runtime", "mtia_runtime", "privateuse1_driver"])
def test_launches_of_other_devices_are_launches(tmp_path, runtime):
    events = [host("c10d::alltoall_base_", 10, 50), *launched(20, 1, 1000)]
    events[1]["cat"] = runtime
    path = tiny.write(tmp_path / "t.json", events)
    assert origins_of(path) == [("c10d::alltoall_base_",)]
