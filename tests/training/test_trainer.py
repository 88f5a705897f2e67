import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import run_steps, tiny_config, weights

from muse.config import save_config
from muse.training import trainer as trainer_module
from muse.training.trainer import NonFiniteError, Trainer, main
from muse.utils import cli


def test_a_nonfinite_step_stops_before_the_update(tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(tmp_path))
    batches = run_steps(trainer, 1)
    before, average = weights(trainer), {k: v.clone() for k, v in trainer.ema.shadow.items()}
    honest = trainer.loss.forward

    def poisoned(output, images, **kwargs):
        total, report = honest(output, images, **kwargs)
        return total * float("nan"), {**report, "pixel": report["pixel"] * float("inf")}

    monkeypatch.setattr(trainer.graph, "loss", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_step(batches)
    message = str(caught.value)
    assert message.startswith("step 2 is not finite (total") and "pixel inf" in message and "grad_norm nan" in message
    assert "nonfinite-000002" in message and "\n" not in message
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(average[name], trainer.ema.shadow[name]) for name in average)
    assert trainer.step == 1 and trainer.learner.optimizer.state_dict()["state"][0]["step"] == 1
    metadata = json.loads((trainer.output_dir / "nonfinite-000002" / "metadata.json").read_text())
    assert metadata["step"] == 1 and metadata["terms"]["pixel"] == "inf" and len(metadata["samples"]) == 4
    assert (trainer.output_dir / "nonfinite-000002" / "model.safetensors").is_file()
    assert Trainer(tiny_config(tmp_path)).step == 0  # nothing resumes from the picture of a failure


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    trainer = Trainer(tiny_config(tmp_path))
    before = weights(trainer)
    trainer.model.to_latent.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="grad_norm (inf|nan)"):
        run_steps(trainer, 1)
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


class FixedBatches:
    """The same four batches of 8 images, cut into pieces of the size asked for."""

    def __init__(self, config, *, batch_size, **kwargs):
        self.batch_size = batch_size

    def __iter__(self):
        images = torch.randint(0, 256, (32, 3, 56, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        for piece in images.split(self.batch_size):
            yield {"key": [str(image.sum()) for image in piece], "image": piece}


def test_accumulating_two_of_four_is_a_batch_of_eight(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "build_train_loader", FixedBatches)
    found = []
    for size, accumulation in ((8, 1), (4, 2)):
        training = dict(per_gpu_batch_size=size, gradient_accumulation_steps=accumulation)
        trainer = Trainer(tiny_config(tmp_path, training=training, optimizer=dict(params=dict(learning_rate=1e-3))))
        batches = iter(trainer.loader)
        trainer.train_step(batches)
        report = trainer.averages.read(trainer.accelerator)
        run = [trainer.train_step(batches) for _ in range(2)]
        assert run == [0, 0] and trainer.learner.scheduler.last_epoch == 3
        found.append((report, weights(trainer)))
    (one, whole), (two, pieces) = found
    assert one == pytest.approx(two, rel=1e-4)
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=0, atol=2e-5, msg=name)


def test_the_discriminator_learns_from_its_start_and_keeps_its_own_count(parent, tmp_path):
    start = dict(init_checkpoint=str(parent), allow_foreign_parent=True)
    trainer = Trainer(tiny_config(tmp_path, 3, experiment=start, training=dict(max_train_steps=4), losses=dict(
        discriminator_weight=0.1, discriminator_start=2)))
    critic = {name: p.clone() for name, p in trainer.loss.discriminator.named_parameters()}
    batches = run_steps(trainer, 2)
    assert all(torch.equal(critic[name], p) for name, p in trainer.loss.discriminator.named_parameters())
    assert "gan" not in trainer.averages.sums and trainer.critic_learner.scheduler.last_epoch == 0
    trainer.train_step(batches)
    assert any(not torch.equal(critic[name], p) for name, p in trainer.loss.discriminator.named_parameters())
    assert {"gan", "d_loss", "lecam", "d_grad_norm"} <= trainer.averages.sums.keys()
    assert trainer.critic_learner.scheduler.last_epoch == 1 and trainer.learner.scheduler.last_epoch == 3


def test_cached_features_train_like_computed_ones(tmp_path):
    found = {}
    for cached in (False, True):
        trainer = Trainer(tiny_config(tmp_path, training=dict(cache_frozen_features=cached, max_train_steps=6)))
        calls = []
        trainer.model.encoder.register_forward_hook(lambda *args: calls.append(1))
        run_steps(trainer, 6)  # 24 samples of 12, each also mirrored
        found[cached] = (trainer.averages.read(trainer.accelerator), len(calls))
    assert found[True][0] == pytest.approx(found[False][0], rel=0.05)  # tokens pass through bfloat16
    new = {"image": torch.zeros(1, 3, 56, 56, dtype=torch.uint8), "key": ["new"], "flipped": torch.tensor([True])}
    trainer.targets(new)
    before = len(calls)
    trainer.targets(new)
    assert len(calls) == before and ("new", True) in trainer.targets.tokens.rows


def test_bf16_trains_and_evaluates(tmp_path):
    trainer = Trainer(tiny_config(tmp_path, training=dict(mixed_precision="bf16")))
    trainer.run()
    lines = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_loss_scaling_skips_what_overflows_and_changes_nothing_else(tmp_path):
    plain, scaled = (Trainer(tiny_config(tmp_path)) for _ in range(2))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # the first step must overflow
    start = weights(scaled)
    batches = run_steps(scaled, 1)
    assert all(torch.equal(start[name], value) for name, value in weights(scaled).items())
    assert scaled.scaler.get_scale() == 2.0**126
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled.train_step(batches)
    assert 0 < scaled.averages.read(scaled.accelerator)["grad_norm"] < float("inf")  # the skipped step's is left out
    assert any(not torch.equal(start[name], value) for name, value in weights(scaled).items())
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)  # the scale collapsed: it will not recover
    with pytest.raises(NonFiniteError):
        scaled.train_step(batches)
    same = Trainer(tiny_config(tmp_path))
    same.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run_steps(plain, 2)
    run_steps(same, 2)
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(same)[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_fp16_without_a_gpu_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="mixed_precision=fp16 needs a GPU, .* use bf16 or no"):
        Trainer(tiny_config(tmp_path, training=dict(mixed_precision="fp16")))


def test_text_encoder_of_another_width_is_refused(parent, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_training.FakeText.dim", 9)
    with pytest.raises(ValueError, match="semantic_dim is 8, but the text encoder gives 9 numbers: set"):
        Trainer(tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(parent))))


def test_a_config_of_another_stage_is_refused(tmp_path):
    save_config(tiny_config(tmp_path), tmp_path / "one.yaml")
    with pytest.raises(ValueError, match="trains stage 2, the config is of stage 1: use scripts/train_stage1.py"):
        main(2, [f"config={tmp_path / 'one.yaml'}"])


def damage(file, kind):
    tensors = load_file(file)
    name = next(name for name in tensors if "muse_blocks" in name)
    if kind == "missing":
        del tensors[name]
    elif kind == "misshaped":
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind == "headless":
        file.write_bytes(file.read_bytes()[:100])
    return name


@pytest.mark.parametrize("kind", ["missing", "misshaped", "truncated", "headless"])
def test_a_damaged_parent_is_one_line_of_the_command(parent, tmp_path, capsys, kind):
    damaged = tmp_path / "damaged"
    shutil.copytree(parent / "checkpoint-000001", damaged)
    name = damage(damaged / "model.safetensors", kind)
    save_config(tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(damaged))), tmp_path / "two.yaml")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: main(2, ["--config", str(tmp_path / "two.yaml")]))
    errors = capsys.readouterr().err
    assert caught.value.code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert str(damaged) in errors
    assert {"missing": f"missing {name}", "misshaped": f"{name} is ["}.get(kind, "damaged or incomplete") in errors
    assert not (tmp_path / "stage2").exists()


def test_the_command_line_trains_with_overrides(tmp_path):
    save_config(tiny_config(tmp_path), tmp_path / "one.yaml")
    main(1, ["--config", str(tmp_path / "one.yaml"), "training.max_train_steps=1"])
    assert [p.name for p in (tmp_path / "stage1").glob("checkpoint-*")] == ["checkpoint-000001"]
