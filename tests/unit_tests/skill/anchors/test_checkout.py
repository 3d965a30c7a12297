"""Queries find the deciding lines of every generation of NVIDIA's repositories."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.skill.anchors.checkout import Found, anchors_of
from overlapkit.skill.anchors.place import LEFT_OUT
from overlapkit.skill.anchors.sets import BRIDGE, DP, LAUNCH, MEGATRON_LM, PP, TP
from overlapkit.skill.render import SKILL, find_root
from support.megatron_checkouts import VARIABLE, bridge, megatron_lm, write
from support.repository import Repository

Command = Callable[..., Any]
FIRST_LINES = {
    TP: "if self.user_comm_overlap_cfg.tp_comm_overlap is True:",
    PP: "if model_cfg.pipeline_model_parallel_size > 1:",
    DP: "if self.data_parallel_size > 1:",
    "Bucket size": "cfg.bucket_size = 128 * 1024 * 1024",
    "Userbuffers applied": "if model_config.tp_comm_overlap:",
}
EP_LINES = {
    "EP gating": "if self.user_comm_overlap_cfg.overlap_moe_expert_parallel_comm is True:",
    "Delayed weight gradients": "if self.user_comm_overlap_cfg.delay_wgrad_compute is True:",
}


def found(root: Path) -> dict[str, Found]:
    (anchors,) = anchors_of(str(root))
    return {each.label: each for each in anchors.found}


def first_line(each: Found) -> str:
    assert each.full is not None, each
    return each.full.text.splitlines()[0].strip()


@pytest.mark.parametrize("generation", ["early", "plugin", "moved", "env_vars"])
def test_each_generation_has_its_lines(generation: str, tmp_path: Path) -> None:
    answer = found(bridge(tmp_path, generation))
    expected = FIRST_LINES | ({} if generation == "early" else EP_LINES)
    assert {label: first_line(answer[label]) for label in expected} == expected
    for each in answer.values():
        for anchor in (each.short, each.full):
            if anchor is not None:
                lines = (tmp_path / anchor.path).read_text().splitlines()
                quoted = [line for line in anchor.text.splitlines() if line != LEFT_OUT]
                assert set(quoted) <= set(lines[anchor.start - 1 : anchor.end])
                assert not anchor.path.startswith("tests/")


@pytest.mark.parametrize(
    ("generation", "path", "note"),
    [
        ("early", "src/megatron/hub/training/comm_overlap.py", "before PerfEnvPlugin"),
        ("plugin", "src/megatron/bridge/recipes/run_plugins.py", ""),
        ("moved", "scripts/performance/perf_plugins.py", "recipes/run_plugins.py has no"),
        ("env_vars", "src/megatron/bridge/training/config.py", "since Megatron-Bridge 0.6.0"),
    ],
)
def test_the_launch_environment_is_followed(
    generation: str, path: str, note: str, tmp_path: Path
) -> None:
    launch = found(bridge(tmp_path, generation))[LAUNCH]
    assert launch.short is not None and launch.short.path == path
    assert (VARIABLE in launch.short.text) == (generation != "env_vars")
    assert note in launch.detail and bool(note) == bool(launch.detail)


def test_what_a_recipe_states_is_applied_since_it_can(tmp_path: Path) -> None:
    applied = "Environment of the recipe applied"
    assert applied not in found(bridge(tmp_path / "old", "plugin"))
    assert "for name, value" in first_line(found(bridge(tmp_path / "new", "env_vars"))[applied])


def test_code_that_is_not_there_is_said_to_be_gone(tmp_path: Path) -> None:
    answer = found(bridge(tmp_path, "early"))
    assert answer["EP gating"].short is None
    assert answer["EP gating"].detail.startswith(
        "not in this checkout; looked for CommOverlapConfig"
    )


def test_a_renamed_method_is_found_in_its_class(tmp_path: Path) -> None:
    file = bridge(tmp_path, "plugin") / "src/megatron/bridge/training/comm_overlap.py"
    file.write_text(file.read_text().replace("_get_model_comm_overlap_cfgs", "_for_model"))
    answer = found(tmp_path)[TP]
    assert first_line(answer) == FIRST_LINES[TP]
    assert "no longer in CommOverlapConfig._get_model_comm_overlap_cfgs" in answer.detail


def test_a_method_is_found_in_a_class_of_another_name(tmp_path: Path) -> None:
    file = bridge(tmp_path, "early") / "src/megatron/hub/training/comm_overlap.py"
    file.write_text(file.read_text().replace("class CommOverlapConfig", "class MegatronOverlap"))
    answer = found(tmp_path)
    assert {label: first_line(answer[label]) for label in FIRST_LINES} == FIRST_LINES
    assert VARIABLE in first_line(answer[LAUNCH])
    assert "found here" in answer[TP].detail


@pytest.mark.parametrize("old", [False, True])
def test_megatron_lm(old: bool, tmp_path: Path) -> None:
    root = megatron_lm(tmp_path, old=old)
    (anchors,) = anchors_of(str(root))
    assert anchors.name == "Megatron-LM 0.17.1"
    answer = {each.label: each for each in anchors.found}
    assert set(answer) == {query.label for query in MEGATRON_LM}
    assert first_line(answer[LAUNCH]).startswith(f"assert os.environ.get('{VARIABLE}') == \"1\"")
    assert first_line(answer[TP]) == "if args.tp_comm_overlap:"
    assert "max(40000000" in first_line(answer["Bucket size"])
    one_bucket = answer["One bucket in later stages and chunks"]
    assert first_line(one_bucket) == "if disable_bucketing or pp_rank > 0:"
    excluded = answer["Overlapped p2p excludes batched p2p"]
    assert first_line(excluded) == "if config.overlap_p2p_comm and config.batch_p2p_comm:"
    assert bool(answer[TP].detail) == old


def test_megatron_lm_inside_of_bridge_and_installed_packages(tmp_path: Path) -> None:
    root = bridge(tmp_path / "checkout", "plugin")
    megatron_lm(root / "3rdparty/Megatron-LM")
    names = [each.name for each in anchors_of(str(root))]
    assert names == ["Megatron-Bridge 0.3.1", "Megatron-LM 0.17.1"]
    packages = tmp_path / "site-packages"
    shutil.copytree(root / "src/megatron", packages / "megatron")
    (installed,) = anchors_of(str(packages))
    assert [each.short and each.short.start for each in installed.found] == [
        each.short and each.short.start for each in anchors_of(str(root))[0].found
    ]


def test_the_commit_is_named(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    repository = Repository(root)
    bridge(root, "moved")
    repository.commit()
    (anchors,) = anchors_of(str(root))
    commit = repository.git("rev-parse", "--short=10", "HEAD").strip()
    assert anchors.name == f"Megatron-Bridge (no version stated), commit {commit}"


@pytest.mark.parametrize("make", [lambda p: None, lambda p: write(p, "a.py", "x = 1\n")])
def test_another_folder_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match="has no code of Megatron-Bridge or Megatron-LM"):
        anchors_of(str(tmp_path))


class TestRendered:
    @pytest.mark.parametrize("generation", ["early", "plugin", "env_vars"])
    def test_the_skill_quotes_the_checkout_and_is_right(
        self, generation: str, tmp_path: Path, overlapkit: Command
    ) -> None:
        root = bridge(tmp_path / "checkout", generation)
        out = tmp_path / "perf-tp-dp-comm-overlap"
        assert overlapkit("skill", "render", "--against", str(root), "--out", str(out)).status == 0
        main = (out / "SKILL.md").read_text(encoding="utf-8")
        assert FIRST_LINES[TP] in main and "decide_tp_overlap" not in main
        assert len(main) / 3.32 < 2000
        code = (out / "references/code.md").read_text(encoding="utf-8")
        assert all(f"\n{q.label}" in code for q in BRIDGE if q.always)
        version = {"plugin": "0.3.1", "env_vars": "0.6.0"}.get(generation, "(no version stated)")
        assert f"Megatron-Bridge {version}" in main and f"Megatron-Bridge {version}" in code
        checked = overlapkit("skill", "check", str(out), "--root", str(root))
        assert checked.status == 0, checked.out
        assert (out / "scripts/overlapkit").is_file() and (out / "src/overlapkit").is_dir()
        # Again, into the same folder, after an update.
        overlap = next(root.rglob("training/comm_overlap.py"))
        overlap.write_text("# one more line\n" + overlap.read_text())
        assert overlapkit("skill", "check", str(out), "--root", str(root)).status == 1
        assert overlapkit("skill", "render", "--against", str(root), "--out", str(out)).status == 0
        assert overlapkit("skill", "check", str(out), "--root", str(root)).status == 0

    def test_a_folder_with_other_files_is_left_alone(
        self, tmp_path: Path, overlapkit: Command
    ) -> None:
        root = bridge(tmp_path / "checkout", "plugin")
        own = find_root(str(Path(__file__).parent)) / SKILL
        file = root / "src/megatron/bridge/training/config.py"
        for out in (root, file, own / "references/new"):
            done = overlapkit("skill", "render", "--against", str(root), "--out", str(out))
            assert done.status == 2 and "--out" in done.err and len(done.err.splitlines()) == 1
        assert not (root / "SKILL.md").exists() and not (own / "references/new").exists()

    @pytest.mark.parametrize(
        "arguments",
        [["--against", "x"], ["--out", "x"], ["--against", "x", "--out", "y", "--check"]],
    )
    def test_options_that_do_not_go_together(
        self, arguments: list[str], overlapkit: Command
    ) -> None:
        done = overlapkit("skill", "render", *arguments)
        assert done.status == 2 and "--against and --out go together" in done.err
