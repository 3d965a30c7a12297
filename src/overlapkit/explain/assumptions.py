"""What a configuration file does not say: the GPU, the software and the environment of the job."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from packaging.version import Version

from megatron.bridge.training.software import AssumedSoftware, installed_version, te_version
from overlapkit.config.installation import Installation
from overlapkit.config.text_file import read_text
from overlapkit.errors import InputError
from overlapkit.explain.report import CURRENT, Assumptions
from overlapkit.hardware import find_gpu
from overlapkit.output.console import encodable

DEFAULT_GPU = "h100"
_IMPORT_LIMIT_S = 120


def assume(
    gpu: str | None,
    te: str | None,
    env_file: str | None,
    variables: Mapping[str, str] | None = None,
    installation: Installation | None = None,
) -> Assumptions:
    """The assumptions that the command's options state.

    Args:
        gpu: name of the cluster's GPU; None assumes h100.
        te: "assume" (a recent version), "here" (look), "none" or a version. None is the version of
            `installation`, and without one "assume".
        env_file: file of the job's environment.
        variables: the job's environment, instead of a file; without either, the current one is
            taken.
        installation: what --stack names.

    Raises:
        InputError: an unknown GPU, not a version, or an unreadable file.
    """
    name, figures = find_gpu(DEFAULT_GPU if gpu is None else gpu)
    software, te_text = _software(te, installation)
    if variables is not None:
        environment, source = dict(variables), "the given environment"
    elif env_file is not None:
        environment, source = read_env_file(env_file), encodable(env_file)
    else:
        environment, source = dict(os.environ), CURRENT
    return Assumptions(
        gpu_name=name,
        gpu=figures,
        gpu_given=gpu is not None,
        software=software,
        te=te_text,
        environment=environment,
        environment_source=source,
        environment_is_the_jobs=variables is not None or env_file is not None,
    )


def _software(te: str | None, installation: Installation | None) -> tuple[AssumedSoftware, str]:
    torch = (installation.torch if installation is not None else None) or "any"
    if te is None and installation is not None and installation.te is not None:
        software = AssumedSoftware(te=installation.te, torch=torch)
        return software, f"{installation.te}, as in {installation.path}"
    if te is None or te == "assume":
        return AssumedSoftware(torch=torch), "assumed, in a recent version"
    if te == "none":
        return AssumedSoftware(te=None, torch=torch), "none, as stated"
    if te == "here":
        return _installed_here()
    try:
        Version(te)
    except ValueError:
        # InvalidVersion is one; so is the error for a number of thousands of digits.
        raise InputError(f"--te {te}: give assume, here, none or a version such as 2.12") from None
    return AssumedSoftware(te=te, torch=torch), f"{te}, as stated"


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

    An empty file, and ``/dev/null``, say that none is set.

    Raises:
        InputError: it cannot be read as text, or a line is not an assignment.
    """
    # Imported here: most runs have no such file, and dotenv takes a tenth of the start.
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    text = read_text(name, what="environment file (--env-file)", nothing=True)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            line = binding.original.line
            raise InputError(f"{name}:{line}: not an assignment; write NAME=value")
        if re.search(r"=[^\s'\"#]+\s+\w+=", binding.original.string):
            line = binding.original.line
            raise InputError(f"{name}:{line}: several assignments; write one a line")
    values = DotEnv(None, stream=io.StringIO(text), interpolate=False).dict()
    return {key: value for key, value in values.items() if value is not None}
