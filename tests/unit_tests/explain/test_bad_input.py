"""Bad input of every kind ends in exit status 2 and one line that helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RUN = """\
model:
  tensor_model_parallel_size: 2
  sequence_parallel: true
ddp:
  use_distributed_optimizer: true
comm_overlap:
  tp_comm_overlap: true
"""


def bombs(form: str, levels: int = 26) -> str:
    lines = ["model:", "  a0: &a0 " + form.format(*["x"] * 4).replace("{{", "{").replace("}}", "}")]
    for n in range(1, levels):
        lines.append(f"  a{n}: &a{n} " + form.format(*[f"*a{n - 1}"] * 4))
    return "\n".join(lines) + "\n"


# The text of a file, and what the one line must name: its line or key, and the remedy.
FILES = {
    "empty": ("", ["none of the sections model, ddp and comm_overlap"]),
    "a comment": ("# nothing\n", ["none of the sections"]),
    "no known section": ("foo: {a: 1}\n", ["none of the sections"]),
    "a list": ("- a\n- b\n", ["contains a list", "not a mapping"]),
    "a scalar": ("hello\n", ["'hello'", "not a mapping"]),
    "two documents": (RUN + "---\n" + RUN, [":8:", "second YAML document"]),
    "a key twice": ("model:\n  num_layers: 2\n  num_layers: 3\n", [":3:", "num_layers", "twice"]),
    "a section twice": ("model: {}\nddp: {}\nmodel: {}\n", [":3:", "'model'", "twice"]),
    "an open brace": ("model: {a: 1\nddp: ]\n", [":2:", "not valid YAML"]),
    "a tab": ("model:\n\tnum_layers: 2\n", [":2:", "spaces instead of tabs"]),
    "a control character": ("model:\n  a: \x07\n", [":2:", "not valid YAML"]),
    "deep brackets": ("model:\n  a: " + "[" * 200, [":2:", "nested too deeply"]),
    "bottomless brackets": ("[" * 500_000, [":1:"]),
    "bottomless dashes": ("- " * 500_000, [":1:"]),
    "bottomless braces": ("{a: " * 500_000, [":1:"]),
    "too many values": ("a: [" + "x," * 200_000 + "]", ["more values than"]),
    "an alias bomb of lists": (bombs("[{}, {}, {}, {}]"), ["aliases expand to more values"]),
    "an alias bomb of mappings": (
        bombs("{{p: {}, q: {}, r: {}, s: {}}}"),
        ["aliases expand to more values"],
    ),
    "an alias bomb of merges": (
        "a0: &a0 {k0: x}\n"
        + "".join(
            f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}], k{n}: x}}\n"
            for n in range(1, 26)
        ),
        ["aliases expand to more values"],
    ),
    "an alias to itself": (
        "model: &m\n  a: *m\n",
        [":1:", "alias refers to a value that contains it"],
    ),
    "a merge of itself": ("model: &m\n  <<: *m\n", ["alias refers to a value that contains it"]),
    "an unknown alias": ("model: *nothing\n", [":1:", "not valid YAML"]),
    "a merge of no mapping": ("model:\n  <<: 5\n", [":2:", "not valid YAML"]),
    "a number for a section": ("1: 2\n" + RUN, [":1:", "'1'", "quote it"]),
    "null for a section": ("null: 2\n" + RUN, [":1:", "'null'", "quote it"]),
    "a yes for a key": ("model:\n  on: 2\n", [":2:", "'on'", "quote it"]),
    "a date for a key": ("model:\n  2020-01-01: 2\n", [":2:", "a date", "quote it"]),
    "a list for a key": ("model: {}\n[a]: b\n", [":2:", "a key must be a name"]),
    "a mapping for a key": ("model:\n  {a: 1}: b\n", [":2:", "a key must be a name"]),
    "a Python object": ("model: !!python/object:os.system {}\n", [":1:", "tag", "python/object"]),
    "a Python call": ('model: !!python/object/apply:os.system ["true"]\n', [":1:", "tag"]),
    "an unknown tag": ("model: !mine {}\n", [":1:", "!mine"]),
    "no date": ("model:\n  a: 2020-13-45\n", [":2:", "2020-13-45"]),
    "no number": ("model:\n  num_layers: !!int many\n", [":2:", "'many' is not a valid int"]),
    "an empty number": ('model:\n  num_layers: !!int ""\n', [":2:", "is not a valid int"]),
    "no truth value": ("model:\n  bf16: !!bool maybe\n", [":2:", "'maybe' is not a valid bool"]),
    "more than 64 bits": ("model:\n  seed: 99999999999999999999\n", [":2:", "64 bits"]),
    "five thousand digits": ("model:\n  seed: " + "9" * 5000 + "\n", [":2:", "64 bits"]),
    "model is a number": ("model: 5\n", [":1:", "model must be a section", "5"]),
    "model is a list": ("model: [1]\n", [":1:", "model must be a section", "[1]"]),
    "a section is text": (RUN + "train: often\n", [":8:", "train must be a section", "'often'"]),
    "mixed_precision is a number": ("model: {}\nmixed_precision: 5\n", [":2:", "mixed_precision"]),
    "an unknown recipe": (
        "model: {}\nmixed_precision: bf16_mixd\n",
        [":2:", "'bf16_mixd'", "bf16_mixed"],
    ),
    "a misspelt knob": (
        "model:\n  tensor_model_paralel_size: 2\n",
        [":2:", "tensor_model_paralel_size", "did you mean model.tensor_model_parallel_size?"],
    ),
    "a misspelt knob of comm_overlap": (
        RUN + "  overlap_grad_reduc: true\n",
        [":8:", "did you mean comm_overlap.overlap_grad_reduce?"],
    ),
    "a misspelt section": (
        "model: {}\ncomm_overlp: {tp_comm_overlap: true}\n",
        [":2:", "'comm_overlp'", "did you mean comm_overlap?"],
    ),
    "a knob in the wrong section": (
        "model:\n  overlap_grad_reduce: true\n",
        [":2:", "model.overlap_grad_reduce", "did you mean comm_overlap.overlap_grad_reduce?"],
    ),
    "a layout knob in ddp": (
        "ddp:\n  tensor_model_parallel_size: 2\n",
        [":2:", "did you mean model.tensor_model_parallel_size?"],
    ),
    "a knob at the top level": (
        "tensor_model_parallel_size: 2\nmodel: {}\n",
        [":1:", "top level", "did you mean model.tensor_model_parallel_size?"],
    ),
    "text for a size": (
        "model:\n  tensor_model_parallel_size: two\n",
        [":2:", "model.tensor_model_parallel_size must be a whole number", "'two'"],
    ),
    "a fraction for a size": (
        "model:\n  tensor_model_parallel_size: 2.0\n",
        [":2:", "must be a whole number", "2.0"],
    ),
    "true for a size": (
        "model:\n  tensor_model_parallel_size: true\n",
        [":2:", "must be a whole number", "True"],
    ),
    "not-a-number for a size": ("model:\n  num_layers: .nan\n", [":2:", "a whole number", "nan"]),
    "infinity for a size": ("ddp:\n  bucket_size: .inf\n", [":2:", "ddp.bucket_size", "inf"]),
    "1 for a switch": (
        "model:\n  sequence_parallel: 1\n",
        [":2:", "model.sequence_parallel must be true or false", "1"],
    ),
    "a list for a switch": ("ddp:\n  overlap_grad_reduce: [true]\n", [":2:", "true or false"]),
    "a number for names": (
        "model:\n  recompute_modules: 5\n",
        [":2:", "model.recompute_modules must be a list of names", "5"],
    ),
    "a very long value": ("ddp: {overlap_grad_reduce: '" + "x" * 100_000 + "'}\n", [":1:", "..."]),
    "a negative size": (
        "model:\n  tensor_model_parallel_size: -2\n",
        [":2:", "model.tensor_model_parallel_size must be 1 or more", "-2"],
    ),
    "a zero size": ("model:\n  context_parallel_size: 0\n", [":2:", "1 or more", "0"]),
    "a zero bucket": ("ddp:\n  bucket_size: 0\n", [":2:", "ddp.bucket_size must be 1 or more"]),
    "a negative vocabulary": (
        "model: {}\ntokenizer:\n  vocab_size: -5\n",
        [":3:", "tokenizer.vocab_size"],
    ),
    "an absurd size": (
        "model:\n  seq_length: 9000000000000\n",
        [":2:", "model.seq_length", "less"],
    ),
    "a billion layers": ("model:\n  num_layers: 1000000000\n", [":2:", "model.num_layers", "less"]),
    "a billion experts": (
        "model:\n  num_layers: 2\n  num_moe_experts: 1000000000\n",
        [":3:", "model.num_layers x model.num_moe_experts", "less"],
    ),
    "a negative bucket in comm_overlap": (
        RUN + "  bucket_size: -1\n",
        [":8:", "comm_overlap.bucket_size", "auto", "-1"],
    ),
    "no request in comm_overlap": (
        "model: {}\ncomm_overlap: {}\n",
        [":2:", "comm_overlap.tp_comm_overlap is required"],
    ),
    "a null request in comm_overlap": (
        "model: {}\ncomm_overlap: {tp_comm_overlap: null}\n",
        [":2:", "comm_overlap.tp_comm_overlap is required"],
    ),
    "an unknown preset": (
        RUN + "  tp_comm_overlap_cfg: userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8191\n",
        [":8:", "unknown preset", "did you mean userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192?"],
    ),
    "a target that is no preset": (
        RUN + "  tp_comm_overlap_cfg: {_target_: os.system, _call_: false}\n",
        [":8:", "unknown preset", "os.system"],
    ),
    "a number for the userbuffers": (RUN + "  tp_comm_overlap_cfg: 5\n", [":8:", "preset", "5"]),
    "a layout that does not divide": (
        "model: {tensor_model_parallel_size: 3}\n",
        ["--world-size 64", "tensor_model_parallel_size=3", "multiple of 3"],
    ),
    "a layout larger than the job": (
        "model: {pipeline_model_parallel_size: 128}\n",
        ["--world-size 64", "pipeline_model_parallel_size=128", "multiple of 128"],
    ),
}


def check(result, *named: str) -> None:
    assert result.status == 2, result
    assert result.out == ""
    assert result.err.startswith("overlapkit: ")
    assert result.err.count("\n") == 1 and result.err.endswith("\n")
    assert "Traceback" not in result.err and "internal error" not in result.err
    assert len(result.err) < 1500
    for each in named:
        assert each in result.err


@pytest.mark.parametrize(("text", "named"), FILES.values(), ids=FILES)
def test_a_bad_file(text: str, named: list[str], overlapkit, config) -> None:
    name = config(text)
    check(overlapkit("explain", name, "--world-size", "64"), name, *named)


OVERRIDES = {
    "foo.bar=1": ["foo.bar", "unknown section 'foo'"],
    "comm_overlp.tp_comm_overlap=true": ["did you mean comm_overlap.tp_comm_overlap?"],
    "tensor_model_parallel_size=2": ["did you mean model.tensor_model_parallel_size?"],
    "model.tensor_parallel_size=2": ["did you mean model.tensor_model_parallel_size?"],
    "model.overlap_grad_reduce=true": ["did you mean comm_overlap.overlap_grad_reduce?"],
    "model.xyzzy=1": ["model.xyzzy: unknown key"],
    "logger.xyzzy=1": ["logger.xyzzy: unknown key"],
    "model={xyzzy: 1}": ["model.xyzzy: unknown key"],
    "model={1: 2}": ["'1'", "quote it"],
    "model._target_=os.system": ["model._target_: unknown key"],
    "model.num_layers=two": ["model.num_layers must be a whole number", "'two'"],
    "model.num_layers=-1": ["model.num_layers must be 0 or more", "-1"],
    "model.tensor_model_parallel_size=0": ["1 or more"],
    "model.tensor_model_parallel_size=8.0": ["a whole number"],
    "model.num_layers.x=3": ["model.num_layers must be a whole number"],
    "model.num_layers=None": ["write null"],
    "model.num_layers=": ["no value", "write null"],
    "model.num_layers=[": ["not valid YAML"],
    "model.num_layers=" + "[" * 60_000: ["model.num_layers=[[["],
    "model.num_layers=&a [*a]": ["alias"],
    "model.num_layers=2020-13-45": ["2020-13-45"],
    "model.num_layers=!!python/object:os.system {}": ["tag"],
    "model.num_layers=1\n---\n2": ["second YAML document"],
    "model.seq_length=" + "9" * 5000: ["64 bits"],
    "model.=1": ["'model.' is not a key", "section.key=value"],
    "model..num_layers=1": ["is not a key"],
    ".num_layers=1": ["is not a key"],
    "~model.num_layers=1": ["set it to null instead"],
    "~model.num_layers": ["set it to null instead"],
    "+model.num_layers": ["section.key=value"],
    "model=5": ["model must be a section with keys"],
    "comm_overlap=true": ["comm_overlap must be a section with keys"],
    "comm_overlap={}": ["comm_overlap.tp_comm_overlap is required"],
    "comm_overlap.bucket_size=1e9": ["comm_overlap.bucket_size", "'1e9'"],
    "comm_overlap.tp_comm_overlap_cfg=nothing": ["unknown preset 'nothing'"],
    "comm_overlap.tp_comm_overlap.x=1": ["comm_overlap.tp_comm_overlap is True in the file"],
    "comm_overlap.tp_comm_overlap_cfg" + ".a" * 5000 + "=1": ["is not a key"],
    "mixed_precision=bf16_mixd": ["bf16_mixed"],
    "mixed_precision=5": ["mixed_precision must be a section with keys"],
    "ddp.bucket_size=auto": ["ddp.bucket_size must be a whole number or null"],
    "model.\x1b[31m=1": ["\\x1b[31m"],
    "model.num_layers=\udcff": ["UTF-8"],
}


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: ascii(text[:40]))
def test_a_bad_override(override: str, overlapkit, config) -> None:
    result = overlapkit("explain", config(RUN), override, "--world-size", "64")
    check(result, *OVERRIDES[override])


def test_a_key_of_the_file_itself_may_be_overridden(overlapkit, config) -> None:
    name = config(RUN + "mine: {a: 1}\n")
    assert overlapkit("explain", name, "mine.a=2", "--world-size", "64").status == 0


OPTIONS = {
    "no world size": ([], ["--world-size"]),
    "a world size of text": (["--world-size", "many"], ["--world-size", "'many'"]),
    "a world size of 0": (["--world-size", "0"], ["--world-size 0"]),
    "a negative world size": (["--world-size", "-8"], ["--world-size -8"]),
    "an absurd world size": (["--world-size", "1" + "0" * 30], ["--world-size 1"]),
    "a world size of many digits": (["--world-size", "1" * 5000], ["--world-size"]),
    "two world sizes": (["--world-size", "8", "--world-size", "16"], ["more often"]),
    "an unknown GPU": (["--world-size", "8", "--gpu", "h10"], ["did you mean h100?", "b200"]),
    "an empty GPU": (["--world-size", "8", "--gpu", ""], ["unknown GPU", "h100"]),
    "an unknown Transformer Engine": (["--world-size", "8", "--te", "new"], ["--te new", "2.12"]),
    "an unknown option": (["--world-size", "8", "--jsno"], ["--jsno", "--json"]),
    "an option without its value": (["--world-size"], ["--world-size"]),
    "no such environment": (["--world-size", "8", "--env-file", "/nowhere"], ["/nowhere"]),
    "a folder of environment": (["--world-size", "8", "--env-file", "/"], ["/: is a folder"]),
    "a third configuration": (["--world-size", "8", "b.yaml", "c.yaml"], ["c.yaml", "two"]),
    "a second configuration that is missing": (["--world-size", "8", "b.yaml"], ["b.yaml"]),
}


@pytest.mark.parametrize(("options", "named"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option(options: list[str], named: list[str], overlapkit, config) -> None:
    check(overlapkit("explain", config(RUN), *options), *named)


def test_an_unknown_command(overlapkit) -> None:
    check(overlapkit("explian", "run.yaml"), "explian", "--help")


def test_no_configuration(overlapkit) -> None:
    check(overlapkit("explain"), "CONFIG")


def test_an_override_instead_of_a_configuration(overlapkit) -> None:
    result = overlapkit("explain", "model.num_layers=2", "--world-size", "8")
    check(result, "model.num_layers=2", "after the configuration file")


RAW = {
    "NUL": (b"model:\0", ["binary"]),
    "UTF-16": ("model: {}\n".encode("utf-16"), ["binary"]),
    "Latin-1": (b"model:\n  a: \xe9\n", [":2:", "UTF-8"]),
    "gzip": (b"\x1f\x8b\x08junk", ["UTF-8"]),
    "five megabytes": (b"#" * 5_000_000, ["larger than"]),
}


@pytest.mark.parametrize(("content", "named"), RAW.values(), ids=RAW)
@pytest.mark.parametrize("place", ["configuration", "environment"])
def test_a_file_that_is_no_text(
    content: bytes, named: list[str], place: str, overlapkit, config, tmp_path: Path
) -> None:
    path = tmp_path / "raw"
    path.write_bytes(content)
    of = [path] if place == "configuration" else [config(RUN), "--env-file", path]
    check(overlapkit("explain", *of, "--world-size", "8"), str(path), *named)


def test_a_byte_order_mark_is_no_error(overlapkit, config) -> None:
    assert overlapkit("explain", config("\ufeff" + RUN), "--world-size", "8").status == 0


@pytest.mark.parametrize("place", ["configuration", "environment"])
def test_what_is_no_file(place: str, overlapkit, config, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    run = config(RUN)
    for name, told in (
        (tmp_path / "missing", "no such file"),
        (tmp_path, "is a folder"),
        (fifo, "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (f"{run}/below", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("", "its name is empty"),
        ("a\0b", "cannot be read"),
        ("\udcff.yaml", "no such file"),
    ):
        of = [name] if place == "configuration" else [run, "--env-file", name]
        check(overlapkit("explain", *of, "--world-size", "8"), told)


def test_a_file_that_may_not_be_read(overlapkit, config) -> None:
    name = config(RUN)
    Path(name).chmod(0)
    # Root may read every file, so be nobody for as long as that takes.
    user, nobody = os.geteuid(), 65534
    overlapkit("explain", name)
    if user == 0:
        os.seteuid(nobody)
    try:
        result = overlapkit("explain", name, "--world-size", "8")
    finally:
        os.seteuid(user)
    check(result, name, "Permission denied")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A=1\nexport B=2\nset -e\n", [":3:", "NAME=value"]),
        ('A="never closed\n', [":1:", "NAME=value"]),
    ],
)
def test_a_bad_environment(text: str, named: list[str], overlapkit, config) -> None:
    environment = config(text, "cluster.env")
    result = overlapkit("explain", config(RUN), "--world-size", "8", "--env-file", environment)
    check(result, environment, *named)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--debug", "explain", "nowhere.yaml", "--world-size", "8"],
        ["explain", "--debug", "nowhere.yaml", "--world-size", "8"],
        ["explain", "nowhere.yaml", "--world-size", "8", "--debug"],
    ],
)
def test_debug_shows_a_traceback_wherever_it_stands(arguments: list[str], overlapkit) -> None:
    result = overlapkit(*arguments)
    assert result.status == 2 and result.out == ""
    assert result.err.startswith("Traceback") and "nowhere.yaml: no such file" in result.err


def test_debug_changes_no_answer(overlapkit, config) -> None:
    name = config(RUN)
    plain = overlapkit("explain", name, "--world-size", "8", "--json")
    assert overlapkit("--debug", "explain", name, "--world-size", "8", "--json") == plain
    assert overlapkit("explain", name, "--debug", "--world-size", "8", "--json") == plain


def test_nothing_in_a_file_is_called(overlapkit, config, tmp_path: Path) -> None:
    made = tmp_path / "made"
    call = f"{{_target_: os.mkdir, _args_: [{made}]}}"
    name = config(f"_target_: os.mkdir\n_args_: [{made}]\nmodel: {{a: {call}}}\nother: {call}\n")
    assert overlapkit("explain", name, "--world-size", "8").status == 0
    assert not made.exists()


@pytest.mark.parametrize("command", ["explain", "doctor"])
def test_an_environment_in_which_nothing_is_set(
    command: str, overlapkit, config, tmp_path: Path
) -> None:
    (tmp_path / "empty.env").write_text("")
    run = config(RUN.replace("tp_comm_overlap: true", "tp_comm_overlap: false"))
    options = ("--world-size", "8", "--gpu", "h100", "--json")
    statuses = []
    for name in ("/dev/null", str(tmp_path / "empty.env")):
        result = overlapkit(command, run, *options, "--env-file", name)
        assert result.err == ""
        statuses.append(result.status)
    # What a file sets would be a contradiction, and what is certainly not set an omission.
    assert statuses == [1, 1]
