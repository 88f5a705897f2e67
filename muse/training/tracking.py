"""Where numbers go: metrics.jsonl always, TensorBoard and wandb when asked."""
import dataclasses
import datetime
import importlib.util
import json
import math
import os
from pathlib import Path

import torch

from muse.data.index import read_index
from muse.data.sources import find_sources


def check_trackers(names):
    """ValueError where a tracker's package is not installed (accelerate would leave it out in silence)."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"experiment.trackers asks for {name}, which is not installed: pip install "
                             f"-e '.[logging]', or take {name} out of the list")


def write_text(path, text):
    """Write a text file whole or not at all."""
    partial = Path(f"{path}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def plain(values):
    """JSON has no NaN and no infinity: None stands for both."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def write_json(path, values):
    """Write a dict of plain values as indented JSON, whole or not at all."""
    write_text(path, json.dumps(plain(values), indent=2, allow_nan=False) + "\n")


def epoch_size(shards):
    """Samples in the training shards by their index (dataset.json), or None where it does not list every shard."""
    index = read_index(shards)
    if index is None:
        return None
    counts = {name: entry["samples"] for split in index["splits"].values() for name, entry in split["shards"].items()}
    names = [Path(url).name for source in find_sources(shards) for url in source.urls]
    return sum(counts[name] for name in names) if counts.keys() >= set(names) else None


def format_step(step, last, values):
    """One line of log text: the terms, the rates and the time left."""
    own = ("total", "lr", "lr_encoder", "d_lr", "images_per_second", "data_wait_share", "images_seen", "epoch")
    terms = " ".join(f"{name} {value:.4f}" for name, value in values.items() if name not in own)
    speed = values["images_per_second"]
    left = (last - step) * values["images_seen"] / step / speed if speed else 0
    return (f"step {step}/{last} loss {values['total']:.4f} {terms} lr {values['lr']:.2e} {speed:.1f} img/s "
            f"waiting for data {values['data_wait_share']:.0%} left {datetime.timedelta(seconds=round(left))}")


class Tracker:
    """Appends one line a call to `<output_dir>/metrics.jsonl` and hands the same numbers to accelerate's trackers.

    A resumed run continues the file: lines beyond `start_step`, which will be written again, and a line torn by a kill
    are dropped.
    """

    def __init__(self, accelerator, config, start_step):
        self.accelerator = accelerator
        self.path = Path(config.experiment.output_dir) / "metrics.jsonl"
        if accelerator.is_main_process and self.path.exists():
            write_text(self.path, "".join(f"{line}\n" for line in self._kept(start_step)))
        if config.experiment.trackers:
            experiment = config.experiment
            run = {"name": experiment.name, "id": f"{experiment.name}-stage{experiment.stage}", "resume": "allow",
                   "dir": experiment.output_dir, "config": dataclasses.asdict(config)}
            accelerator.init_trackers(experiment.project, init_kwargs={
                "wandb": run, "tensorboard": {"purge_step": start_step + 1}})

    def _kept(self, start_step):
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= start_step:
                    yield line
            except json.JSONDecodeError:
                return

    def log(self, step, values):
        """Record `values` (dict of numbers) at `step`."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **plain(values)}, allow_nan=False) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)

    def close(self):
        """Flush and end the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


class Averages:
    """Means of scalar tensors since the last reading, kept on the device: adding never waits for it."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, values, finite_only=False):
        """values: dict of scalar tensors, the same names in every process; `finite_only` leaves out inf and NaN."""
        for name, value in values.items():
            value, counted = value.detach().float(), 1
            if finite_only:
                counted = value.isfinite()
                value = value.where(counted, 0)
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + counted

    def read(self, accelerator):
        """Dict of float means over what was added, in all processes, NaN of nothing; starts anew. Waits for the device
        once."""
        names = list(self.sums)
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        self.sums, self.counts = {}, {}
        return dict(zip(names, accelerator.reduce(means, "mean").tolist()))
