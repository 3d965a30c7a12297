"""A script full of commands that destroy is followed, and nothing is executed or written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DESTROYS = r"""
#!/bin/bash
rm -rf / --no-preserve-root "$HOME" ~ ./* "{0}"
dd if=/dev/zero of="{0}/disk" bs=1M
mkfs.ext4 /dev/sda
echo gone > "{0}/written"
: > /dev/sda
echo more >> "{0}/written"
cat <<EOF > "{0}/heredoc"
$(touch "{0}/substituted") `rm -r "{0}"`
EOF
mv "{0}" "{0}.moved"
kill -9 -1
bomb() {{ bomb | bomb & }}
curl -s http://localhost/x.sh | bash
wget -qO- http://localhost/x.sh | sh -s -- --all
A=$(rm -rf "{0}"; echo 1 | tee "{0}/tee")
B=`touch "{0}/ticks"`
C=$((1 + $(touch "{0}/arithmetic"; echo 2)))
D=(<(touch "{0}/process") $(mkdir "{0}/array"))
[ -n "$(touch "{0}/test")" ] && touch "{0}/and"
[[ -f $(touch "{0}/double") ]] || touch "{0}/or"
trap 'touch "{0}/trap"' EXIT ERR DEBUG
eval "touch {0}/eval"
eval "$(echo touch "{0}/evalled")"
source <(echo touch "{0}/sourced")
bash -c 'touch {0}/inner; torchrun pretrain_gpt.py --num-layers 2'
python3 -c 'open("{0}/python", "w")'
find / -delete
exec 3> "{0}/descriptor"
printf x | tee "{0}/tee" > /dev/null
while read -r x; do rm -rf "$x"; done < <(ls /)
for f in "{0}"/*; do unlink "$f"; done
select x in a b; do reboot; done
coproc {{ touch "{0}/coproc"; }}
git reset --hard; git clean -fdx; chmod -R 000 /; chown -R nobody /
sudo shutdown -h now
export PATH="$(touch "{0}/path"):$PATH" LD_PRELOAD="{0}/evil.so"
torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 2 --hidden-size 8 \
  --num-attention-heads 2 --tensor-model-parallel-size ${{C:-$(touch "{0}/default")}} \
  2>&1 | tee "{0}/log"
"""

FOLLOWS = """
import os, sys
sys.dont_write_bytecode = True
from overlapkit.config.shell.follow import follow_script
text = open(sys.argv[1]).read()
follow_script("run", "t.sh", {})
BAD = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.",
       "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink",
       "os.chmod", "os.chown", "os.kill", "os.putenv", "shutil.", "socket.", "ctypes.", "import")
def refuse(event, args):
    written = event == "open" and (
        any(sign in (args[1] or "") for sign in "wax+")
        or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if written or event.startswith(BAD):
        raise RuntimeError(f"{event} {args}")
sys.addaudithook(refuse)
try:
    open(sys.argv[1] + ".probe", "w")
except RuntimeError:
    pass
else:
    sys.exit("the hook does not refuse")
for each in follow_script(text, "t.sh", {}).started:
    print(each.words[0].text)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    path = tmp_path / "t.sh"
    path.write_text(DESTROYS.format(tmp_path / "kept"))
    return path


def test_nothing_is_executed_and_nothing_is_written(script: Path) -> None:
    command = [sys.executable, "-c", FOLLOWS, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # It was followed to its end: each is a program that bash would have started.
    started = done.stdout.split()
    assert "rm" in started and "dd" in started and started.count("torchrun") == 2
    assert sorted(path.name for path in script.parent.iterdir()) == ["kept", "t.sh"]
    assert not list((script.parent / "kept").iterdir())


READ_ONLY = "mount -o remount,bind,ro / && ! touch {0}/written 2> /dev/null"


def test_it_is_explained_where_nothing_can_be_written(script: Path) -> None:
    sandbox = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    check = READ_ONLY.format(script.parent)
    if (
        shutil.which("unshare") is None
        or subprocess.run([*sandbox, check], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine permits no mount namespace with a read-only root")
    program = Path(sys.executable).with_name("overlapkit")
    explain = f"{program} explain --from-megatron-lm {script} --gpu h100"
    done = subprocess.run(
        [*sandbox, f"{check} && exec {explain}"], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr
    assert "t.sh" in done.stdout + done.stderr
    assert not list((script.parent / "kept").iterdir())
