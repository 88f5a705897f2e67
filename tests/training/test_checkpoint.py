import errno
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import run_steps, tiny_config

from muse.models import MUSE_ViT
from muse.training import checkpoint
from muse.training.trainer import Trainer


STATE_OF_FIRST = Path("checkpoint-000001") / checkpoint.STATE


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


@pytest.fixture
def trainer(tmp_path):
    trainer = Trainer(tiny_config(tmp_path))
    run_steps(trainer, 1)
    trainer.save(checkpoint.name_of(1))
    return trainer


def test_a_checkpoint_is_a_model_directory_of_the_averages(trainer):
    path = trainer.output_dir / "checkpoint-000001"
    assert {str(p) for p in contents(path)} == {"model.safetensors", "config.yaml", "metadata.json",
                                                "training_state/state.pt"}
    run_steps(trainer, 1)
    trainer.save(checkpoint.name_of(2))
    model = MUSE_ViT.from_pretrained(trainer.output_dir / "checkpoint-000002")
    parameters = dict(model.named_parameters())
    for name, average in trainer.ema.shadow.items():
        assert torch.equal(parameters[name], average), name
    raw = torch.load(trainer.output_dir / "checkpoint-000002" / checkpoint.STATE, weights_only=True)["weights"]
    assert any(not torch.equal(raw[name], average) for name, average in trainer.ema.shadow.items())
    assert not any("teacher" in name for name in model.state_dict())
    metadata = checkpoint.read_metadata(trainer.output_dir / "checkpoint-000002")
    assert (metadata["stage"], metadata["step"], metadata["parent"]) == (1, 2, None)


@pytest.mark.parametrize("broken", ["torch.save", "muse.models.base_model.save_file", "os.fsync", "os.rename"])
def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(trainer, monkeypatch, broken):
    before = contents(trainer.output_dir)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(broken, full)
    with pytest.raises(OSError) as caught:
        trainer.save(checkpoint.name_of(2))
    monkeypatch.undo()
    message = str(caught.value)
    assert "checkpoint-000002 could not be saved (No space left on device): make room" in message
    assert "\n" not in message and contents(trainer.output_dir) == before
    assert [p.name for p in trainer.output_dir.iterdir() if p.name.startswith(".")] == []
    assert checkpoint.list_complete(trainer.output_dir)[-1].name == "checkpoint-000001"


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as Linux has them")
def test_writes_that_really_fail_are_the_same_sentence(trainer):
    before = contents(trainer.output_dir)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[STATE_OF_FIRST]) - 4096, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint-000002 could not be saved .* earlier checkpoints are whole"):
            trainer.save(checkpoint.name_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert contents(trainer.output_dir) == before


def test_a_kill_while_writing_is_ignored_and_tidied(trainer, tmp_path):
    partial = trainer.output_dir / ".checkpoint-000002.partial"
    partial.mkdir()
    (partial / "metadata.json").write_text("{}")
    assert [p.name for p in checkpoint.list_complete(trainer.output_dir)] == ["checkpoint-000001"]
    assert Trainer(tiny_config(tmp_path)).step == 1
    trainer.save(checkpoint.name_of(2))
    assert not partial.exists()


def test_the_newest_are_kept(tmp_path):
    trainer = Trainer(tiny_config(tmp_path, experiment=dict(keep_checkpoints=2)))
    for step in (1, 2, 10, 9):
        trainer.save(checkpoint.name_of(step))
        trainer.save(checkpoint.name_of(step))  # the same step again replaces it
    assert [p.name for p in checkpoint.list_complete(trainer.output_dir)] == ["checkpoint-000009", "checkpoint-000010"]
    keep_all = Trainer(tiny_config(tmp_path, experiment=dict(keep_checkpoints=0, output_dir=str(tmp_path / "all"))))
    for step in (1, 2, 3, 4):
        keep_all.save(checkpoint.name_of(step))
    assert len(checkpoint.list_complete(keep_all.output_dir)) == 4


def test_a_kill_while_removing_an_old_one_leaves_no_half_checkpoint(trainer, monkeypatch):
    def killed(directory, *args, **kwargs):
        if directory.exists():
            (directory / "model.safetensors").unlink()
            raise KeyboardInterrupt

    trainer.config.experiment.keep_checkpoints = 1
    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save(checkpoint.name_of(2))
    monkeypatch.undo()
    assert [p.name for p in checkpoint.list_complete(trainer.output_dir)] == ["checkpoint-000002"]
    trainer.save(checkpoint.name_of(3))
    assert [p.name for p in trainer.output_dir.iterdir() if "checkpoint-" in p.name] == ["checkpoint-000003"]


@pytest.mark.parametrize("text", ['{"format_version": 1, "sta', "", "[]", "\x00", '{"stage": 1, "step": 1}',
                                  '{"format_version": "1", "stage": 1, "step": 1}', '{"format_version": 1, "step": 1}'])
def test_damaged_metadata_is_one_sentence(tmp_path, text):
    file = tmp_path / "metadata.json"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        checkpoint.read_metadata(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{file} is torn or lacks") and f"remove {tmp_path}" in message and "\n" not in message


def test_a_newer_format_is_refused(trainer):
    path = trainer.output_dir / "checkpoint-000001" / "metadata.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ValueError, match="format 99, this version reads up to 1: update muse"):
        checkpoint.read_metadata(path.parent)
