"""The stage launchers: what they hand to `accelerate launch`, and what they refuse. A recorder stands in for Python."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDER = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo "$FAKE_GPUS 2"; exit; fi
printf '%s\\n' "$@"
printf '%s\\n' "CHECKPOINT_DIR=${CHECKPOINT_DIR:-}" "DATA_DIR=${DATA_DIR:-}" "PYTHONPATH=$PYTHONPATH"
exit "${FAKE_STATUS:-0}"
"""


@pytest.fixture
def launch(tmp_path):
    python = tmp_path / "recorder"
    python.write_text(RECORDER)
    python.chmod(0o755)
    workplace = tmp_path / "a folder"
    workplace.mkdir()

    def launch(*arguments, stage=1, gpus=0, root=ROOT, **environment):
        clean = {"PATH": os.environ["PATH"], "PYTHON": str(python), "FAKE_GPUS": str(gpus), **environment}
        done = subprocess.run(["bash", str(root / "tools" / f"train_stage{stage}.sh"), *arguments], cwd=workplace,
                              env=clean, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr
    return launch


PLACES = {"CHECKPOINT_DIR": "/c", "DATA_DIR": "/d"}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_cpu_and_default_places_of_the_miniature(launch, stage):
    status, lines, _ = launch("muse_tiny", "training.seed=3", stage=stage)
    assert status == 0
    script = lines.index(str(ROOT / "scripts" / f"train_stage{stage}.py"))
    assert lines[:2] == ["-m", "accelerate.commands.launch"]
    assert "--cpu" in lines[:script] and "--multi_gpu" not in lines
    assert lines[script + 1:script + 4] == ["--config", str(ROOT / f"configs/muse_tiny/stage{stage}.yaml"),
                                            "training.seed=3"]
    assert f"CHECKPOINT_DIR={ROOT}/checkpoints" in lines and f"DATA_DIR={ROOT}/data" in lines


def test_gpus_of_several_machines(launch):
    _, lines, _ = launch("muse_3b", gpus=8, NUM_MACHINES="2", MACHINE_RANK="1", MAIN_PROCESS_IP="10.0.0.1",
                         MAIN_PROCESS_PORT="29501", **PLACES)
    line = " ".join(lines)
    for words in ("--num_processes 16", "--num_machines 2", "--machine_rank 1", "--main_process_ip 10.0.0.1",
                  "--main_process_port 29501", "--multi_gpu", "configs/muse_3b/stage1.yaml"):
        assert words in line
    assert "--cpu" not in lines


def test_num_processes_and_mixed_precision(launch):
    _, lines, _ = launch("muse_1b", gpus=8, NUM_PROCESSES="1", MIXED_PRECISION="fp16", **PLACES)
    assert "--num_processes 1" in " ".join(lines) and "--multi_gpu" not in lines
    assert "training.mixed_precision=fp16" in lines and "--mixed_precision fp16" in " ".join(lines)


def test_arguments_keep_their_shape(launch, tmp_path):
    config = tmp_path / "my config.yaml"
    config.write_text("")
    shards = "dataset.params.train_shards=a b/{000000..000020}.tar"
    _, lines, _ = launch(str(config), shards, "experiment.name=$(touch x) *")
    assert str(config) in lines and shards in lines and "experiment.name=$(touch x) *" in lines


def test_default_is_muse_1b(launch):
    assert str(ROOT / "configs/muse_1b/stage1.yaml") in launch(**PLACES)[1]
    assert str(ROOT / "configs/muse_1b/stage1.yaml") in launch("training.seed=1", **PLACES)[1]


def evaluate(*arguments, **environment):
    done = subprocess.run([shutil.which("bash"), str(ROOT / "tools/evaluate.sh"), "config.yaml", "run", *arguments],
                          env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_without_torch_or_python_it_says_what_to_install(launch, tmp_path, script):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # -S: no installed packages
    bare.chmod(0o755)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(shutil.which(name))
    start = (lambda **environment: launch("muse_tiny", **environment)) if script == "train" else evaluate
    for environment, reason in (({"PYTHON": str(bare)}, "No module named 'torch'"),
                                ({"PYTHON": "/nowhere/python"}, "/nowhere/python is not on the PATH"),
                                ({"PYTHON": "", "PATH": str(programs)}, "python is not on the PATH")):
        status, lines, errors = start(**environment)
        assert (status, lines, errors.count("\n")) == (1, [], 1), errors
        assert errors.startswith("error: ") and reason in errors
        assert errors.endswith("install first: pip install -e .\n")


def test_a_failed_run_fails_the_launcher(launch):
    assert launch("muse_tiny", FAKE_STATUS="7")[0] == 7


def test_works_where_the_path_has_spaces(launch, tmp_path):
    root = tmp_path / "MUSE of mine"
    shutil.copytree(ROOT / "tools", root / "tools")
    shutil.copytree(ROOT / "configs", root / "configs")
    status, lines, _ = launch("muse_tiny", root=root)
    assert status == 0 and f"DATA_DIR={root}/data" in lines and f"PYTHONPATH={root}" in lines


@pytest.mark.parametrize("arguments, environment, message", [
    (["muse_1b"], {}, "error: CHECKPOINT_DIR is not set: export CHECKPOINT_DIR=/path/to/pretrained/models\n"),
    (["muse_3b"], {"CHECKPOINT_DIR": "/c"}, "error: DATA_DIR is not set: export DATA_DIR=/path/to/datasets\n"),
    (["muse_2b"], PLACES, "error: unknown configuration 'muse_2b'; use muse_1b, muse_3b, muse_tiny or a YAML file\n"),
    (["none.yaml"], PLACES, "error: config file none.yaml does not exist\n"),
    (["muse_tiny"], {"NUM_PROCESSES": "2"}, "error: NUM_PROCESSES=2, but no GPU was found; one process runs on CPU\n"),
    (["muse_tiny"], {"NUM_PROCESSES": "two"},
     "error: NUM_PROCESSES is 'two': set it to a whole number above 0, or unset it\n")])
def test_refusals(launch, arguments, environment, message):
    status, lines, errors = launch(*arguments, **environment)
    assert (status, lines, errors) == (1, [], message)
