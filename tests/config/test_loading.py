import logging
import re

import pytest

from muse.config import ConfigError, config_from_dict, load_config, save_config


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text("losses: {topology_weight: 0}\n" + text)
        return path
    return write


def message(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_file_then_overrides(write):
    config = load_config(write("training: {seed: 7, max_train_steps: 1_000}\noptimizer: {params: {learning_rate: 5e-5}}"),
                         ["training.seed=8", "experiment.trackers=[wandb]", "model.encoder.config={hidden_size: 64}"])
    assert (config.training.seed, config.training.max_train_steps) == (8, 1000)
    assert config.optimizer.params.learning_rate == 5e-5
    assert config.experiment.trackers == ["wandb"]
    assert type(config.model.encoder.config) is dict and config.model.encoder.config == {"hidden_size": 64}


def test_override_reaches_into_a_mapping_and_keeps_the_rest(write):
    path = write("model: {encoder: {config: {hidden_size: 64, num_hidden_layers: 2}}}")
    config = load_config(path, ["model.encoder.config.num_hidden_layers=3"])
    assert config.model.encoder.config == {"hidden_size": 64, "num_hidden_layers": 3}


def test_override_replaces_a_list(write):
    config = load_config(write("model: {teacher: {layers: [9, 10, 11]}}"), ["model.teacher.layers=[3]"])
    assert config.model.teacher.layers == [3]


def test_saved_config_reads_back_equal(write, tmp_path):
    config = load_config(write("dataset: {params: {train_shards: [{shards: 'a/{00..10}.tar', weight: .2}]}}"))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("key, nearest", [
    ("training.sed", "training.seed"), ("losses.itc_wieght", "losses.itc_weight"), ("seed", "training.seed"),
    ("trianing", "training"), ("model.encoder.pth", "model.encoder.path")])
def test_unknown_key_names_key_source_and_nearest(write, key, nearest):
    with pytest.raises(ConfigError) as error:
        load_config(write(""), [f"{key}=1"])
    assert message(error) == f"command line: unknown key '{key}'; did you mean '{nearest}'?"


def test_unknown_keys_of_a_file_are_all_named(write):
    path = write("training: {sed: 1}\nexperiment: {save_evry: 2}")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert error.value.problems == (f"{path}: unknown key 'training.sed'; did you mean 'training.seed'?",
                                    f"{path}: unknown key 'experiment.save_evry'; did you mean 'experiment.save_every'?")


def test_unknown_key_without_a_neighbour(write):
    with pytest.raises(ConfigError, match="unknown key 'zzz'; `python -m muse.config keys` lists all keys"):
        load_config(write("zzz: 1"))


@pytest.mark.parametrize("text, key, value, expected", [
    ("training: {seed: many}", "training.seed", "'many'", "integer"),
    ("training: {seed: 1.5}", "training.seed", "1.5", "integer"),
    ("training: {ema_decay: [1]}", "training.ema_decay", "[1]", "number"),
    ("training: {use_ema: maybe}", "training.use_ema", "'maybe'", "true or false"),
    ("experiment: {trackers: wandb}", "experiment.trackers", "'wandb'", "list of text"),
    ("model: {teacher: {layers: [last]}}", "model.teacher.layers", "['last']", "list of integer or null"),
    ("model: {encoder: {config: big}}", "model.encoder.config", "'big'", "mapping or null")])
def test_wrong_type_names_key_value_type_and_file(write, text, key, value, expected):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message(error) == f"{path}: {key} = {value} is of the wrong type; expected: {expected}"


def test_wrong_type_on_the_command_line(write):
    with pytest.raises(ConfigError, match="^command line: training.seed = 'x' is of the wrong type; expected: integer"):
        load_config(write(""), ["training.seed=x"])


def test_value_in_place_of_a_section(write):
    with pytest.raises(ConfigError, match=r"'training' is a section of keys, not a value \(3\)"):
        load_config(write("training: 3"))


def test_empty_section_keeps_defaults(write):
    assert load_config(write("training:\n")).training.seed == 42


@pytest.mark.parametrize("text, essence", [
    ("training: [1", "not valid YAML"), ("training: {seed: 1}\ntraining: {seed: 2}", "found duplicate key training")])
def test_unreadable_yaml(write, text, essence):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in message(error) and essence in message(error)


def test_a_list_is_no_config(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected sections such as 'model:', found a list"):
        load_config(tmp_path / "list.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="config file .*/none.yaml does not exist"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("item", ["training.seed", "=3"])
def test_override_without_key_or_value(write, item):
    with pytest.raises(ConfigError, match=re.escape(f"command line: {item!r} is not of the form key=value")):
        load_config(write(""), [item])


@pytest.mark.parametrize("spelling", ["${CHECKPOINT_DIR}", "${oc.env:CHECKPOINT_DIR}"])
def test_environment(write, monkeypatch, spelling):
    path = write(f"model: {{encoder: {{path: '{spelling}/InternVL3-1B'}}}}")
    monkeypatch.setenv("CHECKPOINT_DIR", "/c")
    assert load_config(path).model.encoder.path == "/c/InternVL3-1B"
    monkeypatch.delenv("CHECKPOINT_DIR")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message(error) == (f"{path}: model.encoder.path uses the environment variable CHECKPOINT_DIR, which is not "
                              "set: export CHECKPOINT_DIR=/path/to/directory")
    assert load_config(path, ["model.encoder.path=here"]).model.encoder.path == "here"
    assert load_config(path, resolve_env=False).model.encoder.path == "${CHECKPOINT_DIR}/InternVL3-1B"


def test_environment_inside_lists_and_mappings(write, monkeypatch):
    path = write("dataset: {params: {train_shards: [{shards: '${DATA_DIR}/*.tar'}]}}\n"
                 "model: {encoder: {config: {note: ['${DATA_DIR}']}}}")
    monkeypatch.delenv("DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match="dataset.params.train_shards.* DATA_DIR"):
        load_config(path)
    monkeypatch.setenv("DATA_DIR", "/d")
    config = load_config(path)
    assert config.dataset.params.train_shards == [{"shards": "/d/*.tar"}]
    assert config.model.encoder.config == {"note": ["/d"]}


def test_environment_default_and_references(write, monkeypatch):
    monkeypatch.delenv("MUSE_TEST_NAME", raising=False)
    config = load_config(write("experiment: {name: '${oc.env:MUSE_TEST_NAME,plain}', "
                               "output_dir: 'outputs/${experiment.name}'}"))
    assert (config.experiment.name, config.experiment.output_dir) == ("plain", "outputs/plain")
    with pytest.raises(ConfigError) as error:
        load_config(write("experiment: {name: '${experiment.nme}'}"))
    assert "experiment.name = '${experiment.nme}' cannot be resolved" in message(error)


def test_literal_variables_survive_saving(write, tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    config = load_config(write("dataset: {params: {eval_shards: '${DATA_DIR}/v.tar'}}"), resolve_env=False)
    save_config(config, tmp_path / "saved.yaml")
    monkeypatch.setenv("DATA_DIR", "/d")
    assert load_config(tmp_path / "saved.yaml").dataset.params.eval_shards == "/d/v.tar"


def test_published_spellings(write):
    config = load_config(write(
        "experiment: {init_weight: parent}\n"
        "dataset: {params: {train_shards_path_or_url: a.tar, eval_shards_path_or_url: b.tar, num_workers_per_gpu: 3}}\n"
        "training: {enable_wandb: true}"), ["losses.lecam_regularization_weight=0.5"])
    assert config.experiment.init_checkpoint == "parent" and config.experiment.trackers == ["wandb"]
    assert config.losses.lecam_weight == 0.5
    params = config.dataset.params
    assert (params.train_shards, params.eval_shards, params.num_workers) == ("a.tar", "b.tar", 3)


@pytest.mark.parametrize("text, overrides", [("training: {mixed_precision: no}", []), ("", ["training.mixed_precision=no"])])
def test_yaml_reads_a_bare_no_as_false(write, text, overrides):
    assert load_config(write(text), overrides).training.mixed_precision == "no"


def test_two_spellings_of_one_setting(write):
    with pytest.raises(ConfigError, match="'dataset.params.num_workers_per_gpu' and 'dataset.params.num_workers' name "
                                          "the same setting; keep 'dataset.params.num_workers'"):
        load_config(write("dataset: {params: {num_workers: 1, num_workers_per_gpu: 2}}"))


def test_keys_without_meaning_are_warned_about_once(write, caplog):
    path = write("experiment: {max_train_examples: 1_000}\nlr_scheduler: {params: {learning_rate: 1e-4}}")
    with caplog.at_level(logging.WARNING):
        load_config(path)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: keys without effect here: experiment.max_train_examples (an epoch's length comes from the shards' "
        "index); lr_scheduler.params.learning_rate (the peak is optimizer.params.learning_rate)")


def test_from_dict():
    config = config_from_dict({"losses": {"topology_weight": 0}, "training": {"seed": 3}})
    assert config.training.seed == 3
    with pytest.raises(ConfigError, match="^dictionary: unknown key 'training.sed'"):
        config_from_dict({"training": {"sed": 3}})
