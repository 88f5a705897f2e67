import json
import math

import pytest
import torch
from accelerate import Accelerator
from tiny_training import tiny_config

from muse.data.index import write_index
from muse.training.tracking import Averages, Tracker, check_trackers, epoch_size, format_step
from muse.training.trainer import Trainer


def test_a_resumed_run_continues_its_metrics_without_repeats(tmp_path):
    config = tiny_config(tmp_path)
    path = tmp_path / "stage1" / "metrics.jsonl"
    path.parent.mkdir()
    accelerator = Accelerator(cpu=True)
    first = Tracker(accelerator, config, 0)
    for step in (1, 2, 3):
        first.log(step, {"total": step / 2, "bad": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 4, "tot')  # torn by a kill
    resumed = Tracker(accelerator, config, 2)
    resumed.log(3, {"total": 9.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "total": 0.5, "bad": None}, {"step": 2, "total": 1.0, "bad": None},
                     {"step": 3, "total": 9.0}]


def test_averages_count_each_term_by_itself():
    averages = Averages()
    averages.add({"total": torch.tensor(1.0)})
    averages.add({"total": torch.tensor(2.0), "gan": torch.tensor(5.0)})
    accelerator = Accelerator(cpu=True)
    assert averages.read(accelerator) == {"total": 1.5, "gan": 5.0}
    averages.add({"total": torch.tensor(7.0)})
    assert averages.read(accelerator) == {"total": 7.0}


def test_averages_of_finite_values_only():
    averages, accelerator = Averages(), Accelerator(cpu=True)
    for norm in (2.0, float("inf"), 4.0, float("nan")):
        averages.add({"total": torch.tensor(1.0)})
        averages.add({"grad_norm": torch.tensor(norm)}, finite_only=True)
    assert averages.read(accelerator) == {"total": 1.0, "grad_norm": 3.0}
    averages.add({"grad_norm": torch.tensor(float("inf"))}, finite_only=True)
    assert math.isnan(averages.read(accelerator)["grad_norm"])


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"asks for wandb, which is not installed: pip install -e '\.\[logging\]'"):
        check_trackers(["wandb"])


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    Trainer(tiny_config(tmp_path, experiment=dict(trackers=["tensorboard"]))).run()
    (events,) = (tmp_path / "stage1" / "tensorboard").rglob("events*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("total")] == [1, 2, 3]


def test_an_epoch_is_known_where_the_index_lists_every_shard(tmp_path):
    config = tiny_config(tmp_path)
    shards = config.dataset.params.train_shards
    assert epoch_size(shards) is None
    write_index(tmp_path, {"splits": {"train": {"samples": 12, "shards": {"train-000000.tar": {"samples": 12}}}}})
    assert epoch_size(shards) == 12 and epoch_size([{"shards": shards, "weight": 2.0}]) == 12
    assert epoch_size(str(tmp_path / "*.tar")) is None
    Trainer(config).run()
    last = json.loads((tmp_path / "stage1" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 1.0 and last["images_seen"] == 12
    assert {"total", "pixel", "topology", "grad_norm", "lr", "images_per_second", "data_wait_share"} <= last.keys()


def test_the_log_line_tells_what_is_left():
    line = format_step(50, 250, {"total": 0.5, "pixel": 0.25, "grad_norm": 1.0, "lr": 4e-4, "images_per_second": 10.0,
                                 "data_wait_share": 0.031, "images_seen": 400})
    assert line == ("step 50/250 loss 0.5000 pixel 0.2500 grad_norm 1.0000 lr 4.00e-04 10.0 img/s waiting for data 3% "
                    "left 0:02:40")
