"""What a configuration file does not tell: the GPU, the software and the environment of the job."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

from packaging.version import InvalidVersion, Version

from megatron.bridge.training.software import AssumedSoftware, installed_version, te_version
from overlapkit.config.text_file import read_text
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions
from overlapkit.hardware import find_gpu
from overlapkit.output.console import encodable

DEFAULT_GPU = "h100"
_IMPORT_LIMIT_S = 120


def assume(gpu: str | None, te: str, env_file: str | None) -> Assumptions:
    """The assumptions that the command's options state.

    Args:
        gpu: name of the cluster's GPU; None assumes h100.
        te: "assume" (any version), "here" (look), "none" or a version.
        env_file: file of the job's environment; None takes the present one.

    Raises:
        InputError: an unknown GPU, a version that is none, an unreadable file.
    """
    name, figures = find_gpu(DEFAULT_GPU if gpu is None else gpu)
    software, told = _software(te)
    environment = dict(os.environ) if env_file is None else read_env_file(env_file)
    return Assumptions(
        gpu_name=name,
        gpu=figures,
        gpu_given=gpu is not None,
        software=software,
        te=told,
        environment=environment,
        environment_source="the present environment" if env_file is None else encodable(env_file),
        environment_is_the_jobs=env_file is not None,
    )


def _software(te: str) -> tuple[AssumedSoftware, str]:
    if te == "assume":
        return AssumedSoftware(), "assumed present, in a version new enough"
    if te == "none":
        return AssumedSoftware(te=None), "absent, as stated"
    if te == "here":
        return _installed_here()
    try:
        Version(te)
    except InvalidVersion:
        raise InputError(f"--te {te}: give assume, here, none or a version such as 2.12") from None
    return AssumedSoftware(te=te), f"{te}, as stated"


def _installed_here() -> tuple[AssumedSoftware, str]:
    torch = installed_version("torch") or "any"
    version = te_version()
    if version is None:
        return AssumedSoftware(te=None, torch=torch), "not installed here"
    if not _imports():
        return AssumedSoftware(te=None, torch=torch), f"{version} here, but it cannot be imported"
    return AssumedSoftware(te=version, torch=torch), f"{version}, installed here"


def _imports() -> bool:
    # In a process of its own: it loads torch, takes seconds, and a broken build may abort.
    command = [sys.executable, "-c", "import transformer_engine.pytorch"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_IMPORT_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def read_env_file(name: str) -> dict[str, str]:
    """The variables of a file with lines such as ``NAME=value`` or ``export NAME=value``.

    Raises:
        InputError: it cannot be read as text, or a line is no assignment.
    """
    # Imported here: most runs name no file, and dotenv costs a tenth of the start.
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    text = read_text(name, what="environment file (--env-file)")
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            line = binding.original.line
            raise InputError(f"{name}:{line}: not an assignment; write NAME=value")
        if re.search(r"=[^\s'\"#]+\s+\w+=", binding.original.string):
            line = binding.original.line
            raise InputError(f"{name}:{line}: several assignments; write one a line")
    values = DotEnv(None, stream=io.StringIO(text), interpolate=False).dict()
    return {key: value for key, value in values.items() if value is not None}
