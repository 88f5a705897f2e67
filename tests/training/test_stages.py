import copy

import pytest
import torch
from tiny_training import run_steps, tiny_config, weights

from muse.training.checkpoint import find_parent
from muse.training.stages import STAGES, get_stage
from muse.training.trainer import Trainer

CHECKED = ("encoder", "adapter_mlp", "muse_blocks", "to_latent", "decoder", "semantic_projector", "logit_scale")
CHANGED = {1: {"adapter_mlp", "muse_blocks", "to_latent", "decoder"},
           2: {"adapter_mlp", "muse_blocks", "to_latent", "decoder", "semantic_projector", "logit_scale"},
           3: set(CHECKED)}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_changes_what_it_trains_and_no_other_bit(stage, parent, tmp_path):
    start = {} if stage == 1 else dict(init_checkpoint=str(parent), allow_foreign_parent=True)
    trainer = Trainer(tiny_config(tmp_path, stage, experiment=start))
    before = weights(trainer)
    run_steps(trainer, 2)
    after = weights(trainer)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == CHANGED[stage]
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == STAGES[stage].trains(name)
    assert not trainer.targets.teacher.training
    assert trainer.model.encoder.training == (stage == 3)
    assert trainer.model.decoder.training


def test_only_trained_parts_are_averaged_and_optimised(tmp_path):
    trainer = Trainer(tiny_config(tmp_path))
    optimised = {id(p) for group in trainer.learner.optimizer.param_groups for p in group["params"]}
    trained = {name for name, p in trainer.model.named_parameters() if id(p) in optimised}
    assert trained == set(trainer.ema.shadow)
    assert not any(name.startswith(("encoder.", "semantic_projector.", "logit_scale")) for name in trained)


def test_itc_has_no_place_in_the_first_stage(tmp_path):
    config = copy.deepcopy(tiny_config(tmp_path))
    config.losses.itc_weight = 0.2
    with pytest.raises(ValueError, match="itc_weight is 0.2, but stage 1 .* set it to 0 or train stage 2"):
        get_stage(config)
    config.experiment.stage = 4
    with pytest.raises(ValueError, match="stage is 4: choose one of 1, 2, 3"):
        get_stage(config)


def test_topology_can_be_left_out_of_the_first_stage(tmp_path):
    config = tiny_config(tmp_path, losses=dict(topology_weight=0.0))
    config.dataset.params.eval_shards = str(tmp_path / "validation-000000.tar")
    trainer = Trainer(config)
    trainer.run()
    assert trainer.targets.teacher is None and trainer.step == 3
    assert "topology_kl" not in (trainer.output_dir / "evaluation" / "000003.json").read_text()


def refusal(config):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Trainer(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_stage_two_without_a_parent_is_refused(tmp_path):
    message = refusal(tiny_config(tmp_path, 2))
    assert "stage 2 starts from a stage 1 checkpoint: set experiment.init_checkpoint" in message
    assert "init_checkpoint" in refusal(tiny_config(tmp_path, 2, experiment=dict(allow_foreign_parent=True)))


def test_a_missing_or_empty_parent_is_refused(tmp_path):
    missing = tmp_path / "nowhere"
    assert f"{missing}, and there is no such directory" in refusal(
        tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(missing))))
    missing.mkdir()
    assert "holds no complete one" in refusal(tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(missing))))


def test_a_foreign_parent_is_refused_unless_allowed(parent, tmp_path):
    foreign = dict(init_checkpoint=str(parent))
    message = refusal(tiny_config(tmp_path, 3, experiment=foreign))
    assert "is of stage 1, but stage 3 starts from a stage 2 checkpoint" in message
    assert "stage 1 starts from pretrained backbones" in refusal(tiny_config(tmp_path, 1, experiment=foreign))
    trainer = Trainer(tiny_config(tmp_path, 3, experiment=dict(foreign, allow_foreign_parent=True)))
    assert trainer.parent.parent == parent


def test_an_unfinished_parent_is_pointed_out(tmp_path, caplog):
    first = Trainer(tiny_config(tmp_path))
    run_steps(first, 1)
    first.save("checkpoint-000001")
    with caplog.at_level("WARNING", logger="muse.training.checkpoint"):
        find_parent(tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(tmp_path / "stage1"))), STAGES[2])
    assert "checkpoint-000001 was saved at step 1 of 3" in caplog.text


@pytest.mark.parametrize("allowed", [False, True])
def test_other_sizes_are_always_refused(parent, tmp_path, allowed):
    experiment = dict(init_checkpoint=str(parent), allow_foreign_parent=allowed)
    wider = dict(width=24)
    assert "model.width is 24, but 16 in" in refusal(tiny_config(tmp_path, 2, experiment=experiment, model=wider))
    narrower = dict(encoder=dict(config=dict(intermediate_size=32)))
    assert "does not fit this model" in refusal(tiny_config(tmp_path, 2, experiment=experiment, model=narrower))


def test_the_next_stage_starts_from_the_averages(parent, tmp_path):
    from safetensors.torch import load_file

    from muse.models.names import from_released
    trainer = Trainer(tiny_config(tmp_path, 2, experiment=dict(init_checkpoint=str(parent))))
    stored = from_released(load_file(parent / "checkpoint-000001" / "model.safetensors"))
    own = weights(trainer)
    assert own.keys() == stored.keys() and all(torch.equal(own[name], stored[name]) for name in own)
    assert trainer.step == 0 and trainer.ema.updates == 0
