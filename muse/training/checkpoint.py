"""Checkpoint directories: written whole or not at all, found again, checked before a stage builds on them.

checkpoint-000500/ holds model.safetensors (EMA weights), config.yaml, metadata.json, evaluation.json once that step is
evaluated, and training_state/state.pt (what a resumed run needs).
"""
import json
import logging
import os
import re
import shutil
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError

from muse.config import load_config

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
SIZES = ("width", "heads", "muse_layers", "latent_dim", "semantic_dim")
STATE = Path("training_state") / "state.pt"


def name_of(step):
    """Directory name of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step:06d}"


def list_complete(run_dir):
    """Complete checkpoints of a run, oldest first: a directory has its final name only once it is whole."""
    found = (p for p in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", p.name))
    return sorted((p for p in found if (p / "metadata.json").is_file()), key=lambda p: int(p.name.split("-")[1]))


def read_metadata(path):
    """metadata.json of a checkpoint; ValueError where it is missing, torn or of a newer format."""
    file = Path(path) / "metadata.json"
    if not file.is_file():
        raise ValueError(f"{path} is no checkpoint: it has no metadata.json")
    try:
        metadata = json.loads(file.read_text())
        whole = all(isinstance(metadata[key], int) for key in ("format_version", "stage", "step"))
    except (ValueError, KeyError, TypeError):  # no JSON, a key missing, no JSON object
        whole = False
    if not whole:
        raise ValueError(f"{file} is torn or lacks format_version, stage or step: restore it, or remove {path} so that "
                         f"the checkpoint before it is used")
    if metadata["format_version"] > FORMAT_VERSION:
        raise ValueError(f"{path} has checkpoint format {metadata['format_version']}, this version reads up to "
                         f"{FORMAT_VERSION}: update muse")
    return metadata


def library_versions():
    """Versions of the libraries that shape a checkpoint's numbers."""
    versions = {}
    for package in ("muse", "torch", "accelerate", "transformers", "diffusers", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None  # run from a source tree that is not installed
    return versions


def save(path, model, config, metadata, state, keep=0):
    """Write the checkpoint `path` from what `model` holds now, then remove all but the newest `keep` (0: keep all).

    Everything goes into a hidden directory beside it, is forced to disk and renamed: a kill or a full disk at any
    moment leaves earlier checkpoints as they were. OSError in one sentence where writing fails.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / STATE).parent.mkdir(parents=True)
        model.save_pretrained(partial, config)
        torch.save(state, partial / STATE)
        metadata = {"format_version": FORMAT_VERSION, **metadata, "versions": library_versions()}
        (partial / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        _force_to_disk(partial)
        _rename_over(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors report a full disk their own way
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(f"{path} could not be saved ({reason}): make room or choose another experiment.output_dir, then "
                      f"start again; earlier checkpoints are whole") from error
    if keep:
        _prune(path.parent, keep)


def _prune(run_dir, keep):
    """Hide old checkpoints before emptying them: a kill in between leaves none that looks complete and is not."""
    for old in list_complete(run_dir)[:-keep]:
        hidden = old.with_name(f".{old.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(old, hidden)
    for hidden in run_dir.glob(".checkpoint-*.removed"):  # those of an earlier, killed run too
        shutil.rmtree(hidden)


def _force_to_disk(directory):
    for file in [*directory.rglob("*"), directory]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename_over(partial, path):
    if path.exists():  # the same step again: nothing else can replace a directory that holds files
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
        os.rename(partial, path)
        shutil.rmtree(old)
    else:
        os.rename(partial, path)
    parent = os.open(path.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def find_resumable(config):
    """The newest complete checkpoint in experiment.output_dir, or None for a fresh run; loads no tensor.

    ValueError where the directory belongs to another stage, its training state is missing or torn, or it may not be
    continued (experiment.resume is false).
    """
    run_dir, stage = Path(config.experiment.output_dir), config.experiment.stage
    complete = list_complete(run_dir)
    if not complete:
        return None
    path = complete[-1]
    if not config.experiment.resume:
        raise ValueError(f"experiment.resume is false but {run_dir} holds {path.name}: choose an empty "
                         f"experiment.output_dir")
    found = read_metadata(path)["stage"]
    if found != stage:
        raise ValueError(f"{run_dir} holds a stage {found} run, this is stage {stage}: choose another "
                         f"experiment.output_dir")
    check_sizes(path, config)
    if not zipfile.is_zipfile(path / STATE):  # the table at a torch file's end: what a cut file has lost
        raise _unreadable(path, "missing or torn")
    return path


def load_for_resume(config):
    """(path, training state) of `find_resumable`'s checkpoint, or None; ValueError also where loading it fails."""
    path = find_resumable(config)
    if path is None:
        return None
    try:
        return path, torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything; each means the same to the user
        raise _unreadable(path, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _unreadable(path, reason):
    return ValueError(f"{path / STATE} cannot be read ({reason}): remove {path} to continue from the checkpoint before "
                      f"it")


def find_parent(config, stage):
    """Checkpoint directory that `stage` (a Stage) starts from, or None for stage 1 on pretrained backbones.

    experiment.init_checkpoint names a checkpoint, or a run whose newest one is taken. FileNotFoundError or ValueError
    where it is missing, of another stage (unless experiment.allow_foreign_parent) or of other sizes (always).
    """
    given, foreign = config.experiment.init_checkpoint, config.experiment.allow_foreign_parent
    if given is None:
        if stage.parent is None:
            return None
        raise ValueError(f"stage {stage.number} starts from a stage {stage.parent} checkpoint: set "
                         f"experiment.init_checkpoint to its directory")
    path = Path(given)
    if not path.is_dir():
        raise FileNotFoundError(f"experiment.init_checkpoint is {given}, and there is no such directory")
    if not (path / "metadata.json").is_file():
        complete = list_complete(path)
        if not complete:
            raise ValueError(f"experiment.init_checkpoint is {given}, which is no checkpoint and holds no complete one")
        path = complete[-1]
    metadata = read_metadata(path)
    found = metadata["stage"]
    if found != stage.parent and not foreign:
        origin = "pretrained backbones" if stage.parent is None else f"a stage {stage.parent} checkpoint"
        raise ValueError(f"{path} is of stage {found}, but stage {stage.number} starts from {origin}: change "
                         f"experiment.init_checkpoint, or set experiment.allow_foreign_parent=true")
    planned = check_sizes(path, config).training.max_train_steps
    if metadata["step"] < planned:
        log.warning("%s was saved at step %d of %d: this stage starts from an unfinished one", path, metadata["step"],
                    planned)
    return path


def check_sizes(path, config):
    """The checkpoint's MuseConfig. ValueError where its connector has other sizes than `config`; single tensors are
    checked when they are loaded."""
    stored = load_config(Path(path) / "config.yaml", resolve_env=False)
    for size in SIZES:
        was, wanted = getattr(stored.model, size), getattr(config.model, size)
        if was != wanted:
            raise ValueError(f"model.{size} is {wanted}, but {was} in {path}: a stage continues its parent's network, "
                             f"use the same value")
    return stored
