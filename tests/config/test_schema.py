import pytest

from muse.config import ConfigError, config_from_dict
from muse.config.keys import known_keys, markdown_table, sections
from muse.config.schema import ALIASES, CONVERSIONS, OBSOLETE

VALID = {"losses": {"topology_weight": 0}}


def build(key, value, extra=()):
    data = {"losses": dict(VALID["losses"])}
    for name, item in [*extra, (key, value)]:
        node = data
        *path, leaf = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = item
    return config_from_dict(data)


@pytest.mark.parametrize("key, value, essence", [
    ("model.variant", "papers", "use one of released, paper, coupled"),
    ("model.block.semantic_anchor", "loose", "use one of None, none, detached, through, shared"),
    ("model.block.topology_from", "first", "last_block_mean, every_head"),
    ("model.teacher.library", "keras", "transformers, timm"),
    ("model.text_encoder.library", "keras", "open_clip, transformers"),
    ("model.heads", 3, "model.width 512 over model.heads 3 is no even width per head"),
    ("model.heads", 0, "must be at least 1"),
    ("model.grad_scale", -1.0, "must be at least 0"),
    ("model.teacher.layers", [], "list layers from 0, or null for the last"),
    ("model.encoder.num_layers", 0, "model.encoder.num_layers is 0; it must be at least 1"),
    ("experiment.stage", 4, "use one of 1, 2, 3"),
    ("experiment.save_every", 0, "must be at least 1"),
    ("experiment.trackers", ["mlflow"], "use one of tensorboard, wandb"),
    ("losses.reconstruction_loss", "l3", "use one of l1, l2"),
    ("losses.itc_weight", -0.1, "must be at least 0"),
    ("losses.itc_weight", 0.1, "model.text_encoder names no network; set its path or config, or losses.itc_weight=0"),
    ("losses.topology_weight", 2.0, "model.teacher names no network; set its path or config, or losses.topology_weight=0"),
    ("losses.lecam_decay", 1.5, "must lie between 0 and 1"),
    ("dataset.params.num_workers", -1, "must be at least 0"),
    ("dataset.params.max_skipped_fraction", 5.0, "must lie between 0 and 1"),
    ("dataset.preprocessing.crop_size", 256, "raise resize_shorter_edge or lower crop_size"),
    ("optimizer.name", "lion", "use one of adamw"),
    ("optimizer.params.learning_rate", 0.0, "must be above 0"),
    ("optimizer.params.beta2", 2.0, "must lie between 0 and 1"),
    ("lr_scheduler.scheduler", "linear", "use one of cosine, constant"),
    ("lr_scheduler.params.warmup_steps", -1, "must be at least 0"),
    ("lr_scheduler.params.end_lr", 1.0, "lower end_lr"),
    ("training.per_gpu_batch_size", 0, "must be at least 1"),
    ("training.max_grad_norm", 0.0, "must be above 0"),
    ("training.mixed_precision", "fp8", "use one of no, fp16, bf16"),
    ("training.ema_decay", float("nan"), "must lie between 0 and 1"),
    ("training.cache_frozen_features", True, "dataset.preprocessing.random_crop to false"),
    ("evaluation.batch_size", 0, "must be at least 1"),
    ("evaluation.frechet", "fid", "use one of inception, efficientnet_lite0, none"),
    ("evaluation.perceptual", "vgg", "use one of lpips, st_lpips, none"),
])
def test_rules_name_the_key_and_the_remedy(key, value, essence):
    with pytest.raises(ConfigError) as error:
        build(key, value)
    assert key in str(error.value) and essence in str(error.value)


def test_cached_features_and_stage_3():
    still = [("dataset.preprocessing.random_crop", False)]
    assert build("training.cache_frozen_features", True, still).training.cache_frozen_features
    with pytest.raises(ConfigError, match="cache_frozen_features needs a frozen encoder, and stage 3 trains it"):
        build("training.cache_frozen_features", True, [*still, ("experiment.stage", 3)])


def test_path_and_config_exclude_each_other():
    with pytest.raises(ConfigError, match="model.decoder has both path and config; keep path for pretrained weights"):
        build("model.decoder.path", "a", [("model.decoder.config", {"latent_channels": 32})])


def test_training_rules_do_not_bind_a_checkpoint_in_use():
    data = {"losses": {"topology_weight": 2.0, "itc_weight": 0.2}}
    assert config_from_dict(data, resolve_env=False).losses.itc_weight == 0.2
    with pytest.raises(ConfigError) as error:
        config_from_dict(data)
    assert len(error.value.problems) == 2


def test_every_alias_and_obsolete_key_is_in_one_table():
    assert set(ALIASES.values()) <= set(known_keys())
    assert not (set(ALIASES) | set(OBSOLETE)) & set(known_keys()) and not set(ALIASES) & set(OBSOLETE)
    assert set(CONVERSIONS) <= set(ALIASES) | set(known_keys())


def test_keys_come_with_type_default_and_comment():
    key = known_keys()["training.mixed_precision"]
    assert (key.type, key.default, key.comment) == ("text", "bf16", "no | fp16 | bf16")
    assert known_keys()["model.encoder.path"].comment == known_keys()["model.decoder.path"].comment != ""
    assert {"model", "model.encoder", "dataset.params"} <= sections()


def test_markdown_table_has_a_row_a_key():
    rows = markdown_table().splitlines()
    assert len(rows) == len(known_keys()) + 2
    assert "| `training.mixed_precision` | text | `bf16` | no \\| fp16 \\| bf16 |" in rows
    assert "| `training.use_ema` | true or false | `true` |" in markdown_table()
