"""What a configuration trains, reads and writes, and what of it would fail later: `python -m muse.config check`."""
import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import List, Optional

import torch

from muse.config.loading import load_config
from muse.config.schema import MuseConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass
class Report:
    """Lines to print, and one sentence for each thing that would fail later."""
    lines: List[str] = dataclasses.field(default_factory=list)
    problems: List[str] = dataclasses.field(default_factory=list)

    def attempt(self, function, *args):
        """`function(*args)`, or None after noting the mistake that it reports."""
        try:
            return function(*args)
        except (ValueError, OSError, ImportError) as error:
            self.problems.append(str(error))
            return None


def check(path, overrides=(), processes: Optional[int] = None) -> Report:
    """Examine a configuration; no backbone's weights are loaded and nothing is downloaded.

    `processes`: of the run to come; None takes NUM_PROCESSES or the GPUs here.
    """
    report = Report()
    config = report.attempt(load_config, path, overrides)
    if config is not None:
        processes = processes or report.attempt(_planned_processes)
        describe(config, report, processes or 1)
    return report


def _planned_processes() -> int:
    """NUM_PROCESSES or the GPUs here, at least 1; ValueError where NUM_PROCESSES is no such number."""
    text = os.environ.get("NUM_PROCESSES")
    if not text:
        return torch.cuda.device_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"NUM_PROCESSES is '{text}': set it to a whole number above 0, or unset it")
    return int(text)


def describe(config: MuseConfig, report: Report, processes: int) -> None:
    """Fill `report` for a loaded configuration."""
    from muse.training.stages import get_stage
    stage = report.attempt(get_stage, config)
    if stage is None:
        return
    report.lines += [f"{config.experiment.name}: stage {stage.number}, {stage.name}; variant {config.model.variant}; "
                     f"writes {config.experiment.output_dir}", "", "Networks"]
    _networks(config, stage, report)
    report.lines += ["", "Starts from"]
    _parent(config, stage, report)
    report.lines += ["", "Losses"]
    _losses(config, report)
    report.lines += ["", "Networks of losses and metrics"]
    _loss_networks(config, report)
    report.lines += ["", "Data"]
    samples = _data(config, report)
    report.lines += ["", "Batches"]
    _batches(config, report, processes, samples)


def _networks(config, stage, report):
    model = config.model
    wanted = {"encoder": True, "decoder": True, "teacher": config.losses.topology_weight > 0,
              "text_encoder": config.losses.itc_weight > 0}
    local = {}
    for name, needed in wanted.items():
        backbone = getattr(model, name)
        if needed:
            local[name] = _backbone(name, backbone, report)
        elif backbone.given:
            report.lines.append(f"  {name}: not used (its loss weight is 0)")
    if local["encoder"] and local["decoder"]:
        report.attempt(_parameters, config, stage, report)
    else:
        report.lines.append("  parameter counts: unknown until the encoder and the decoder are here")
    if local.get("text_encoder"):
        report.attempt(_text_width, model)


def _backbone(name, backbone, report) -> bool:
    """One line on where a network comes from; True where its architecture is known here."""
    key, path = f"model.{name}", backbone.path
    if not backbone.given:
        report.problems.append(f"{key} names no network; set its path (directory or hub id) or its config")
        return False
    if path is None:
        report.lines.append(f"  {name}: random weights, by {key}.config")
        return True
    if Path(path).is_dir():
        report.lines.append(f"  {name}: {path} (found)")
        if getattr(backbone, "library", "") not in ("timm", "open_clip"):  # these two name their files differently
            from muse.models.tensor_files import weight_files
            report.attempt(weight_files, path)
        return True
    if HUB_ID.fullmatch(path) or getattr(backbone, "library", "") == "timm" and "/" not in path:
        report.lines.append(f"  {name}: {path} (not a directory here; a hub id is downloaded at the start)")
    else:
        report.lines.append(f"  {name}: {path} (missing)")
        report.problems.append(f"{key}.path is {path}, which does not exist; give an existing directory or a hub id")
    return False


def _parameters(config, stage, report):
    from muse.models import MUSE_ViT
    with torch.device("meta"):
        model = MUSE_ViT(config.model, stage.number)
    counts = {True: Counter(), False: Counter()}
    for name, parameter in model.named_parameters():
        counts[stage.trains(name)][name.partition(".")[0]] += parameter.numel()
    for trains, word in ((True, "trained"), (False, "frozen")):
        parts = ", ".join(f"{part} {_millions(n)}" for part, n in counts[trains].items())
        report.lines.append(f"  {word}: {_millions(counts[trains].total())}" + (f" ({parts})" if parts else ""))
    crop = config.dataset.preprocessing.crop_size
    if crop % model.size_divisor:
        raise ValueError(f"dataset.preprocessing.crop_size {crop} does not divide by {model.size_divisor}, the model's "
                         f"stride; use {max(crop // model.size_divisor, 1) * model.size_divisor}")
    side = crop // model.size_divisor
    report.lines.append(f"  {crop} x {crop} pixels -> latent {config.model.latent_dim} x {side} x {side}")


def _text_width(model):
    """ValueError where a local text encoder's width is not model.semantic_dim."""
    encoder = model.text_encoder
    if encoder.config is not None:
        width = encoder.config.get("embed_dim")
    elif encoder.library == "open_clip":
        width = _json(encoder.path, "open_clip_config.json")["model_cfg"]["embed_dim"]
    else:
        width = _json(encoder.path, "config.json")["hidden_size"]
    if width not in (None, model.semantic_dim):
        raise ValueError(f"model.semantic_dim is {model.semantic_dim}, but the text encoder's embeddings have {width} "
                         f"numbers; set model.semantic_dim={width}")


def _json(directory, name):
    file = Path(directory) / name
    if not file.is_file():
        raise ValueError(f"{directory} has no {name}; give a complete model directory")
    return json.loads(file.read_text())


def _parent(config, stage, report):
    from muse.training.checkpoint import find_parent, find_resumable
    resumed = report.attempt(find_resumable, config)
    if resumed is not None:
        report.lines.append(f"  {resumed} (continues)")
        return
    parent = report.attempt(find_parent, config, stage)
    if parent is None:
        report.lines.append("  pretrained backbones" if stage.parent is None else "  no parent (see the errors)")
    else:
        report.lines.append(f"  {parent}")


def _losses(config, report):
    losses, last = config.losses, config.training.max_train_steps
    rows = [(losses.reconstruction_weight, f"pixel ({losses.reconstruction_loss})"),
            (losses.perceptual_weight, f"perceptual ({losses.perceptual_loss})"),
            (losses.topology_weight, "topology"), (losses.itc_weight, "ITC")]
    report.lines += [f"  {weight:<6g} {name}" if weight > 0 else f"  off    {name}" for weight, name in rows]
    if losses.discriminator_weight > 0 and losses.discriminator_start < last:
        report.lines.append(f"  {losses.discriminator_weight:<6g} GAN from step {losses.discriminator_start}")
    else:
        report.lines.append("  off    GAN" + (f" (would start at step {losses.discriminator_start}, training ends at "
                                              f"{last})" if losses.discriminator_weight > 0 else ""))


def _loss_networks(config, report):
    """Build what losses and evaluation load, since their weight files are the last thing a run would miss."""
    from muse.evaluation.evaluator import Evaluator
    from muse.models.perceptual_loss import PerceptualLoss
    losses, evaluation = config.losses, config.evaluation
    if losses.perceptual_weight > 0:
        built = report.attempt(PerceptualLoss, losses.perceptual_loss, losses.perceptual_weights)
        report.lines.append(f"  loss: {losses.perceptual_loss} ({'found' if built else 'see the errors'})")
    built = report.attempt(Evaluator, evaluation, "cpu")
    report.lines.append(f"  evaluation: Frechet {evaluation.frechet}, perceptual {evaluation.perceptual} "
                        f"({'found' if built else 'see the errors'})")


def _data(config, report) -> Optional[int]:
    """Lines on both splits; the number of training samples where an index tells it."""
    from muse.data.sources import find_sources
    totals = {}
    for split in ("train_shards", "eval_shards"):
        key = f"dataset.params.{split}"
        sources = report.attempt(find_sources, getattr(config.dataset.params, split), key) or []
        if not sources:
            report.lines.append(f"  {split}: none found")
        counts = [report.attempt(_count, source) for source in sources]
        share = sum(source.weight for source in sources)
        for source, count in zip(sources, counts):
            known = "unknown number of samples" if count is None else _plural(count, "sample")
            mixed = f", {source.weight / share:.0%} of the mixture" if len(sources) > 1 else ""
            report.lines.append(f"  {split}: {_plural(len(source.urls), 'shard')}, {known}{mixed}: {source.urls[0]}"
                                + (" ..." if len(source.urls) > 1 else ""))
        totals[split] = sum(counts) if counts and None not in counts else None
    return totals["train_shards"]


def _count(source) -> Optional[int]:
    from muse.data.index import read_index
    index = read_index(source.urls[0])
    if index is None:
        return None
    shards = {name: entry["samples"] for split in index["splits"].values() for name, entry in split["shards"].items()}
    names = [Path(url).name for url in source.urls]
    return sum(shards[name] for name in names) if set(names) <= set(shards) else None


def _batches(config, report, processes, samples):
    training = config.training
    batch = training.per_gpu_batch_size * training.gradient_accumulation_steps * processes
    seen = batch * training.max_train_steps
    epochs = f", {seen / samples:.1f} epochs of {samples}" if samples else ""
    report.lines += [
        f"  {training.per_gpu_batch_size} images x {training.gradient_accumulation_steps} accumulated x "
        f"{_plural(processes, 'process', 'es')} = {batch} images a step",
        f"  {training.max_train_steps} steps = {seen} images{epochs}"]
    warmup = config.lr_scheduler.params.warmup_steps
    if warmup >= training.max_train_steps:
        report.lines.append(f"  note: warm-up ({warmup} steps) is as long as the training, so the learning rate never "
                            "reaches its peak")


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 5000 else str(count)


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"
