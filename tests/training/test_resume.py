import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from tiny_training import SIDE, run_steps, tiny_config, weights

from muse.config import save_config
from muse.training import checkpoint
from muse.training.trainer import Trainer


def state_of(trainer):
    """Everything that the next step depends on, flat."""
    flat = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif isinstance(value, (list, tuple)) and not all(isinstance(v, (int, float)) for v in value):
            walk(prefix, dict(enumerate(value)))
        else:
            flat[prefix] = value.clone() if torch.is_tensor(value) else value

    walk("state", trainer._state())
    walk("loader", trainer.loader.state_dict())
    walk("model", weights(trainer))
    return flat


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
        assert same, name


@pytest.mark.parametrize("stage", [1, 3])
def test_six_steps_equal_three_a_kill_and_three(stage, parent, tmp_path):
    start = {} if stage == 1 else dict(init_checkpoint=str(parent), allow_foreign_parent=True)
    gan = {} if stage == 1 else dict(discriminator_weight=0.1, discriminator_start=2, learn_logvar=True)

    def config(name):
        return tiny_config(tmp_path, stage, losses=gan, training=dict(max_train_steps=6, gradient_accumulation_steps=2),
                           experiment=dict(start, output_dir=str(tmp_path / name), save_every=3))

    straight = Trainer(config("straight"))
    straight.run()
    killed = Trainer(config("killed"))
    batches = run_steps(killed, 3)
    killed.save(checkpoint.name_of(3))
    killed.train_step(batches)  # beyond the checkpoint, lost with the process
    resumed = Trainer(config("killed"))
    assert resumed.step == 3 and resumed.ema.updates == 3
    resumed.run()
    assert_same(state_of(straight), state_of(resumed))
    final = [tmp_path / name / "checkpoint-000006" / "model.safetensors" for name in ("straight", "killed")]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_resumed_run_follows_the_rates_of_its_configuration(tmp_path):
    trainer = Trainer(tiny_config(tmp_path, training=dict(max_train_steps=8)))
    run_steps(trainer, 2)
    trainer.save(checkpoint.name_of(2))
    slower = dict(params=dict(learning_rate=1e-4, weight_decay=0.5))
    resumed = Trainer(tiny_config(tmp_path, training=dict(max_train_steps=4), optimizer=slower, lr_scheduler=dict(
        scheduler="constant")))
    groups = resumed.learner.optimizer.param_groups
    assert {group["lr"] for group in groups} == {1e-4} and max(group["weight_decay"] for group in groups) == 0.5
    resumed.run()
    assert resumed.learner.last_rates == {"lr": 1e-4} and resumed.learner.scheduler.last_epoch == 4


def test_the_seed_fixes_everything(tmp_path):
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer(tiny_config(tmp_path, training=dict(seed=seed)))
        run_steps(trainer, 2)
        runs.append(state_of(trainer))
    assert_same(runs[0], runs[1])
    name = next(name for name in runs[0] if name.startswith("model.to_latent"))
    assert not torch.equal(runs[0][name], runs[2][name])


def test_drawing_takes_the_first_images_that_can_be_read(tmp_path, monkeypatch):
    shard = tmp_path / "broken-000000.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("0.jpg", "1.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    tiny_config(tmp_path)  # writes the good shards
    trainer = Trainer(tiny_config(
        tmp_path, training=dict(num_generated_images=2),
        dataset=dict(params=dict(eval_shards=f"{tmp_path}/{{broken,validation}}-000000.tar", num_workers=2))))
    trainer.validation.draw(1)
    assert trainer.validation.images.shape == (2, 3, SIDE, SIDE)
    assert (tmp_path / "stage1/samples/000001.png").is_file()
    trainer.validation.images = None
    monkeypatch.setattr("muse.training.validation.build_eval_loader", lambda *_, **__: [])
    trainer.validation.draw(2)
    assert not (tmp_path / "stage1/samples/000002.png").exists()


def test_evaluating_and_drawing_leave_training_untouched(tmp_path):
    looked = dict(params=dict(eval_shards=str(tmp_path / "validation-000000.tar")))
    plain = Trainer(tiny_config(tmp_path, experiment=dict(output_dir=str(tmp_path / "a"))))
    plain.run()
    watched = Trainer(tiny_config(tmp_path, dataset=looked, experiment=dict(
        output_dir=str(tmp_path / "b"), eval_every=1, generate_every=1)))
    watched.run()
    assert_same({k: v for k, v in state_of(plain).items()}, state_of(watched))
    assert sorted(p.name for p in (tmp_path / "b" / "samples").iterdir()) == [f"{n:06d}.png" for n in range(4)]
    final = json.loads((tmp_path / "b" / "checkpoint-000003" / "evaluation.json").read_text())
    assert final == json.loads((tmp_path / "b" / "evaluation" / "000003.json").read_text())
    assert final["step"] == 3 and final["images"] == 5 and {"psnr", "ssim", "topology_kl"} <= final.keys()


def test_a_finished_run_started_again_trains_no_further(tmp_path):
    config = tiny_config(tmp_path)
    Trainer(config).run()
    before = (tmp_path / "stage1" / "checkpoint-000003" / "model.safetensors").stat().st_mtime_ns
    again = Trainer(config)
    again.run()
    assert again.step == 3
    assert (tmp_path / "stage1" / "checkpoint-000003" / "model.safetensors").stat().st_mtime_ns == before


def test_what_cannot_be_continued_is_refused(parent, tmp_path):
    def attempt(stage=1, **experiment):
        with pytest.raises(ValueError) as caught:
            Trainer(tiny_config(tmp_path, stage, experiment=dict(output_dir=str(tmp_path / "run"), **experiment)))
        return str(caught.value)

    shutil.copytree(parent, tmp_path / "run")
    assert "experiment.resume is false but" in attempt(resume=False)
    assert "holds a stage 1 run, this is stage 2" in attempt(2, init_checkpoint=str(parent))
    with pytest.raises(ValueError, match=r"written with other settings \(ema\): resume with the same use_ema"):
        Trainer(tiny_config(tmp_path, experiment=dict(output_dir=str(tmp_path / "run")), training=dict(use_ema=False)))
    (tmp_path / "run" / "checkpoint-000001" / checkpoint.STATE).write_bytes(b"torn")
    assert "cannot be read" in attempt()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_ends_the_step_and_saves(number, code, tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(tmp_path))
    handler = signal.getsignal(number)
    monkeypatch.setattr(trainer.tracker, "log", lambda step, values: step == 1 and os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        trainer.run()  # the signal comes after step 1: step 2 is finished, then it ends
    assert caught.value.code == code and signal.getsignal(number) == handler
    assert [p.name for p in checkpoint.list_complete(tmp_path / "stage1")] == ["checkpoint-000002"]
    resumed = Trainer(tiny_config(tmp_path))
    resumed.run()
    straight = Trainer(tiny_config(tmp_path, experiment=dict(output_dir=str(tmp_path / "straight"))))
    straight.run()
    assert_same(state_of(straight), state_of(resumed))


def test_a_preempted_script_exits_with_a_sentence(tmp_path):
    config = tiny_config(tmp_path, training=dict(max_train_steps=100_000), experiment=dict(save_every=100_000))
    config.dataset.params.num_workers = 1
    save_config(config, tmp_path / "stage1.yaml")
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, root / "scripts" / "train_stage1.py", "--config", tmp_path / "stage1.yaml"], text=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    metrics, deadline = tmp_path / "stage1" / "metrics.jsonl", time.time() + 120
    while not metrics.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    (saved,) = checkpoint.list_complete(tmp_path / "stage1")
    step = checkpoint.read_metadata(saved)["step"]
    assert f"stopped by signal 15 after step {step}: start again to continue" in output.splitlines()[-1]
