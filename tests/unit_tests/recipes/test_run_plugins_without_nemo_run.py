"""The plugins where nemo_run cannot be imported: the module loads, `setup()` says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = "import sys; sys.modules['nemo_run'] = None\n"
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "nemo_run":
            raise ModuleNotFoundError("No module named 'its_dependency'")
sys.meta_path.insert(0, Broken())
"""
SETUP = """
from megatron.bridge.recipes import run_plugins
assert run_plugins.HAVE_NEMO_RUN is False
steps = dict(profile_step_start=1, profile_step_end=2)
plugins = [
    run_plugins.PerfEnvPlugin(tp_size=2),
    run_plugins.NsysPlugin(**steps),
    run_plugins.PyTorchProfilerPlugin(**steps),
]
for plugin in plugins:
    try:
        plugin.setup(object(), object())
    except ImportError as error:
        print(error)
"""


def _messages(prelude: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", prelude + SETUP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("prelude", [BLOCKED, BROKEN], ids=["missing", "broken"])
def test_setup_says_how_to_install_it(prelude: str) -> None:
    messages = _messages(prelude)

    plugins = ["PerfEnvPlugin", "NsysPlugin", "PyTorchProfilerPlugin"]
    assert [message.split()[0] for message in messages] == plugins
    assert all("pip install nemo-run" in message for message in messages)
    assert all("`nemo-run` extra" in message for message in messages)


def test_a_dependency_that_nemo_run_lacks_is_named() -> None:
    assert all("its_dependency" in message for message in _messages(BROKEN))
