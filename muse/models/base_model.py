"""Save and load: safetensors directories, hub ids, and the released format."""
import dataclasses
import os
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import save_file

from muse.models.names import from_released, to_released
from muse.models.tensor_files import load_strictly, read_tensors, resolve_directory, weight_files


class BaseModel(nn.Module):
    """What every tokenizer needs around its forward pass: `from_config`, `from_pretrained`, `save_pretrained`."""

    @classmethod
    def from_config(cls, config, stage=1):
        """Build from a ModelConfig and load the pretrained backbones that it names by path."""
        from muse.models.backbones import load_decoder
        model = cls(config, stage)
        if config.encoder.path is not None and config.encoder.config is None:
            model.encoder.load(config.encoder.path)
        if config.decoder.path is not None and config.decoder.config is None:
            load_decoder(model.decoder, config.decoder.path)
        return model

    @classmethod
    def from_pretrained(cls, path, encoder_only=False):
        """A checkpoint directory (model.safetensors and config.yaml) or hub id -> the model in evaluation mode.

        Needs no backbone directory, teacher or text encoder; with `encoder_only` no decoder is built either.
        Raises ValueError where files are missing or tensors do not fit.
        """
        from muse.config import load_config
        directory = resolve_directory(path)
        if not (directory / "config.yaml").is_file():
            raise ValueError(f"{directory} has no config.yaml; give a checkpoint directory of this project")
        config = load_config(directory / "config.yaml", resolve_env=False)
        if encoder_only:
            config.model.decoder = None
        model = cls(config.model, config.experiment.stage)
        model.load_released(weight_files(directory), directory)
        return model.eval()

    def load_released(self, files, source):
        """Load tensors under released names, strictly; teacher tensors in the files are left there."""
        skipped = ("dino_teacher.", "module.dino_teacher.") + (() if self.decoder is not None else ("decoder",))
        tensors = read_tensors(files, lambda name: None if name.startswith(skipped) else name)
        load_strictly(self, from_released(tensors), source)

    def explicit_config(self):
        """The model's configuration with its backbones' architectures written out, so that no path is needed."""
        encoder = dataclasses.replace(self.config.encoder, path=None, config=self.encoder.architecture,
                                      num_layers=None, patch_size=None)
        decoder = self.config.decoder
        if self.decoder is not None:
            decoder = dataclasses.replace(decoder, path=None, config=self.decoder.architecture)
        return dataclasses.replace(self.config, encoder=encoder, decoder=decoder)

    def save_pretrained(self, directory, config=None):
        """Write model.safetensors (released names) and config.yaml; `config` (MuseConfig) gives the other sections."""
        from muse.config import MuseConfig, save_config
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = config or MuseConfig()
        config = dataclasses.replace(config, model=self.explicit_config(),
                                     experiment=dataclasses.replace(config.experiment, stage=self.stage))
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        partial = directory / f"model.safetensors.{os.getpid()}.partial"
        try:
            save_file(to_released(tensors), partial, metadata={"format": "pt"})
            partial.chmod(0o644)
            partial.replace(directory / "model.safetensors")
        finally:
            partial.unlink(missing_ok=True)
        save_config(config, directory / "config.yaml")

    def save_released(self, file):
        """Write the released `.bin` (torch file of a flat state dict, with its normalisation buffers, no teacher)."""
        from muse.models.backbones import IMAGENET_MEAN, IMAGENET_STD
        tensors = to_released({name: value.detach().cpu() for name, value in self.state_dict().items()})
        tensors["dino_mean"] = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        tensors["dino_std"] = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
        torch.save(tensors, file)
