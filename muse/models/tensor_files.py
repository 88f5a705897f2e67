"""Reading weight files by name: safetensors or torch files, single or sharded, without materialising what is not asked."""
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json",
           "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin",
           "diffusion_pytorch_model.bin")


PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.yaml"]


def resolve_directory(path_or_hub_id):
    """A local directory as it is; anything else is a hub id and is fetched by huggingface_hub.

    Raises ValueError where neither a directory nor a reachable hub repository has that name.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.is_absolute() or str(path_or_hub_id).count("/") != 1 or "$" in str(path_or_hub_id):
        raise ValueError(f"no directory {path_or_hub_id}; give an existing directory or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{path_or_hub_id} is neither a directory here nor reachable on the hub "
                         f"({type(error).__name__}); download it and give its directory") from error


def quiet_loading():
    """Silence transformers' bar over weights already on disk; downloads keep theirs."""
    from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()


def weight_files(directory):
    """The weight files of a model directory. Raises ValueError where there is none, or an index names a missing one."""
    directory = Path(directory)
    for name in INDEXES:
        if (directory / name).is_file():
            shards = sorted(set(json.loads((directory / name).read_text())["weight_map"].values()))
            missing = [shard for shard in shards if not (directory / shard).is_file()]
            if missing:
                raise ValueError(f"{directory / name} lists {missing[0]}, which is missing; download it again")
            return [directory / shard for shard in shards]
    for name in SINGLES:
        if (directory / name).is_file():
            return [directory / name]
    raise ValueError(f"no weights in {directory}; expected one of {', '.join(SINGLES)} or an index of shards")


def read_tensors(files, wanted=lambda name: name):
    """Read tensors from files: `wanted(name)` gives the name to keep it under, or None to leave it on disk.

    Torch files are memory-mapped and read with weights_only=True: a pickle that carries code is refused.
    """
    tensors = {}
    for file in files:
        if Path(file).suffix == ".safetensors":
            tensors.update(_read_safetensors(file, wanted))
        else:
            tensors.update(_read_torch(file, wanted))
    return tensors


def _read_safetensors(file, wanted):
    try:
        with safe_open(file, "pt") as stored:
            kept = {name: wanted(name) for name in stored.keys()}
            return {new: stored.get_tensor(name) for name, new in kept.items() if new is not None}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}); copy or write it again") from error


def _read_torch(file, wanted):
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several kinds; each means the same to the user
        raise ValueError(f"{file} is not a plain tensor file ({type(error).__name__}: "
                         f"{str(error).splitlines()[0][:120]}); weights are read without unpickling code") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{file} holds a {type(stored).__name__}, not a state dict of named tensors")
    for outer in ("ema_model", "model", "state_dict"):
        if isinstance(stored.get(outer), dict):
            stored = stored[outer]
    kept = {name: wanted(name) for name, value in stored.items() if isinstance(value, torch.Tensor)}
    return {new: stored[name].clone() for name, new in kept.items() if new is not None}


def load_strictly(module, tensors, source):
    """load_state_dict that lists missing, unexpected and mis-shaped names in one ValueError naming `source`."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
                 for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit this model: {'; '.join(problems[:5])}{more}")
    module.load_state_dict({**own, **tensors})
