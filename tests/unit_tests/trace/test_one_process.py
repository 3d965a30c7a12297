"""Several GPUs of one process are not ranks."""

from __future__ import annotations

import sqlite3

import pytest

from support import tiny_trace as tiny
from support.documents import check_document

BROADCAST = "ncclKernel_Broadcast_RING_LL_Sum_int8_t(ncclWorkElem)"
REDUCE = "ncclKernel_Reduce_RING_LL_Sum_float(ncclWorkElem)"


def host(name, ts, dur, cat="user_annotation", **args):
    event = {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 1, "ts": ts, "dur": dur}
    return {**event, "args": args}


def data_parallel(gpus, *, annotated=True, slow=0):
    """Two steps in which each GPU is given the model, computes, and reduces its gradients.

    `slow` is how much longer the last GPU computes in each step, in microseconds.
    """
    events = []
    for number in range(2):
        begin = 1000 + 2000 * number
        events.append(host(f"ProfilerStep#{number}", begin, 1900))
        if annotated:
            events.append(host("DataParallel.forward", begin + 5, 20))
        for gpu in range(gpus):
            longer = slow if gpu == gpus - 1 else 0
            work = [
                (BROADCAST, 50, 350),
                (tiny.GEMM, 400, 800 + longer),
                (REDUCE, 1200 + longer, 400 - longer),
            ]
            for place, (name, at, dur) in enumerate(work):
                launch = 1 + place + 10 * gpu + 100 * number
                events += [
                    host("cudaLaunchKernel", begin + 6, 1, "cuda_runtime", correlation=launch),
                    tiny.kernel(name, begin + at, dur, device=gpu, pid=gpu, correlation=launch),
                ]
    return events


def test_they_are_called_gpus_and_nothing_is_said_across_them(overlapkit, tmp_path):
    trace = tiny.write(tmp_path / "t.json", data_parallel(4, slow=200))
    document = overlapkit("trace", trace, "--json").document
    check_document(document)
    assert document["across_ranks"] is None
    assert [(r["rank"], r["device"], r["gpus"]) for r in document["ranks"]] == [
        (0, gpu, 4) for gpu in range(4)
    ]
    assert "late-rank" not in {d["id"] for d in document["diagnoses"]}
    text = overlapkit("trace", trace).out
    assert text.startswith("4 GPUs of one process, PyTorch DataParallel\n")
    assert "GPU 3, median of 2" in text and "rank" not in text.lower()


def test_the_page_calls_them_gpus_too(overlapkit, tmp_path):
    trace = tiny.write(tmp_path / "t.json", data_parallel(2))
    page = tmp_path / "page.html"
    overlapkit("trace", trace, "--html", page)
    text = page.read_text()
    assert "<h2>GPUs (ms)</h2>" in text and "<td>GPU 1</td>" in text
    assert "rank 0" not in text and "ranks 0" not in text


def test_what_one_of_them_shows_names_it(overlapkit, tmp_path):
    copies = [
        tiny.kernel("Memcpy DtoH (Device -> Pageable)", 2605 + 2000 * n, 290, cat="gpu_memcpy")
        for n in range(2)
    ]
    for event in copies:
        event["args"]["device"] = 1
    trace = tiny.write(tmp_path / "t.json", data_parallel(3) + copies)
    document = overlapkit("trace", trace, "--json").document
    (found,) = [d for d in document["diagnoses"] if d["id"] == "copies-exposed"]
    assert (found["ranks"], found["devices"]) == ([0], [1])
    assert ", GPU 1)" in overlapkit("trace", trace).out


def test_what_dataparallel_communicates_is_data_parallel_and_the_remedy_is_another_wrapper(
    overlapkit, tmp_path
):
    trace = tiny.write(tmp_path / "t.json", data_parallel(2))
    document = overlapkit("trace", trace, "--json").document
    assert document["framework"]["name"] == "data-parallel"
    kinds = {(c["operation"], c["dimension"]) for c in document["ranks"][0]["exposed_collectives"]}
    assert kinds == {("broadcast", "DP"), ("reduce", "DP")}
    (exposed,) = [d for d in document["diagnoses"] if d["id"] == "exposed-communication"]
    assert "DistributedDataParallel with one process per GPU" in exposed["remedy"]
    other = tiny.write(tmp_path / "o.json", data_parallel(2, annotated=False))
    document = overlapkit("trace", other, "--json").document
    assert {c["dimension"] for c in document["ranks"][0]["exposed_collectives"]} == {"other"}


def test_files_of_several_such_processes_are_ranks_with_gpus(overlapkit, tmp_path):
    paths = [tiny.write(tmp_path / f"{n}.json", data_parallel(2)) for n in "ab"]
    document = overlapkit("trace", *paths, "--json").document
    assert [(r["rank"], r["device"]) for r in document["ranks"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    text = overlapkit("trace", *paths).out
    assert text.startswith("2 ranks with 4 GPUs") and "rank 1 GPU 0, median of 2" in text


@pytest.mark.parametrize("processes", [1, 2])
def test_an_export_of_nsys_tells_processes_apart(processes, overlapkit, tmp_path):
    path = tmp_path / "export.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE StringIds (id, value)")
        connection.execute("INSERT INTO StringIds VALUES (1, 'gemm')")
        connection.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL "
            "(start, end, deviceId, streamId, globalPid, correlationId, shortName)"
        )
        for gpu in range(2):
            pid = (100 + gpu * (processes - 1)) << 24
            rows = [(1000 * i, 1000 * i + 600, gpu, 7, pid, i + 1, 1) for i in range(50)]
            connection.executemany(
                "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )
    connection.close()
    document = overlapkit("trace", path, "--json").document
    ranks = [(r["rank"], r["gpus"]) for r in document["ranks"]]
    assert ranks == ([(0, 2), (0, 2)] if processes == 1 else [(0, 1), (1, 1)])


def test_merged_documents_keep_them(overlapkit, tmp_path):
    paths = [tiny.write(tmp_path / f"{n}.json", data_parallel(2)) for n in "ab"]
    together = overlapkit("trace", *paths, "--json").document
    documents = []
    for number, path in enumerate(paths):
        document = tmp_path / f"document{number}.json"
        document.write_text(overlapkit("trace", path, "--json").out)
        documents.append(document)
    assert overlapkit("trace", "--merge", *documents, "--json").document == together
