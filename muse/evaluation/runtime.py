"""What the evaluation scripts share: flags, device and processes, a checkpoint's model, its loader, the results."""
import atexit
import json
import re
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from muse.models import MUSE_ViT
from muse.models.tensor_files import weight_files
from muse.training.checkpoint import SIZES, list_complete


@dataclass(frozen=True)
class Runtime:
    """Where this process computes, and which of how many it is."""
    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self):
        return self.rank == 0


def add_flags(parser):
    """The flags of every script that reads a checkpoint."""
    parser.add_argument("--checkpoint", required=True, metavar="PATH",
                        help="checkpoint directory, run directory (its newest checkpoint), or released weight file")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: this process's GPU if there is one")
    return parser


def start(device=None):
    """Join the processes of `accelerate launch`, if any, and pick the device. Returns Runtime.

    Raises ValueError for a device that is not there.
    """
    from accelerate import PartialState

    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    state = PartialState(cpu=device == "cpu" or not accelerated)  # accelerate counts CPU processes only when told so
    atexit.register(state.destroy_process_group)  # a gloo group still alive at exit may abort the process
    if state.is_main_process:
        warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"
    else:
        warnings.simplefilter("ignore", UserWarning)
    chosen = torch.device(state.device)
    if device is not None and state.num_processes == 1:
        try:
            chosen = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {device} cannot be used here ({reason}): leave it out") from error
    return Runtime(chosen, state.process_index, state.num_processes)


def find_checkpoint(path):
    """The checkpoint that a path means: a file, a directory with weights, or the newest one inside a run directory.

    Raises FileNotFoundError where there is none.
    """
    path = Path(path)
    if path.is_file():
        beside = path.name == "model.safetensors" and (path.parent / "config.yaml").is_file()
        return path.parent if beside else path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}: give a checkpoint directory, a run directory or a weight "
                                "file")
    inside = [] if (path / "model.safetensors").is_file() else list_complete(path)
    return inside[-1] if inside else path


def load_model(checkpoint, config, device, encoder_only=False):
    """The model of a checkpoint (EMA weights), in eval mode on the device.

    A directory with config.yaml describes its own architecture, which `config` must agree with; other weights take
    the architecture from `config`. With `encoder_only` no decoder is built.

    Raises ValueError where the two disagree or the weights do not fit, FileNotFoundError where there is no checkpoint.
    """
    path = find_checkpoint(checkpoint)
    if path.is_dir() and (path / "config.yaml").is_file():
        model = MUSE_ViT.from_pretrained(path, encoder_only=encoder_only)
        for name in SIZES:
            stored, asked = getattr(model.config, name), getattr(config.model, name)
            if stored != asked:
                raise ValueError(f"{path} has model.{name}={stored} but the config says {asked}: "
                                 "give the config it was trained with")
    else:
        model_config = replace(config.model, decoder=None) if encoder_only else config.model
        model = MUSE_ViT(model_config, config.experiment.stage)
        model.load_released([path] if path.is_file() else weight_files(path), path)
    return model.to(device).eval()


def eval_loader(config, runtime, fields=("image",), split="eval"):
    """This process's part of a split ("eval" or "train"), centre-cropped, every image once, telling its progress.

    Raises ValueError where the split is not configured.
    """
    from muse.data.dataloader import build_eval_loader

    key = f"dataset.params.{split}_shards"
    shards = getattr(config.dataset.params, f"{split}_shards")
    if not shards:
        raise ValueError(f"{key} is not set: give it in the config or as {key}=PATTERN")
    unset = re.search(r"\$\{(?:oc\.env:)?(\w+)\}", str(shards))
    if unset:
        raise ValueError(f"{key} uses the environment variable {unset[1]}, which is not set: "
                         f"export it, or pass {key}=PATTERN")
    loader = build_eval_loader(
        shards, config.dataset.preprocessing, batch_size=config.evaluation.batch_size, fields=fields,
        num_workers=config.dataset.params.num_workers, part=(runtime.rank, runtime.world_size),
        max_images=config.evaluation.max_images if split == "eval" else None,
        max_skipped_fraction=config.dataset.params.max_skipped_fraction)
    return progress(loader, f"{split} images") if runtime.is_main else loader


def progress(loader, label, every=10.0):
    """Yield a loader's batches and tell on stderr how many images passed: a bar on a terminal, else a line at times."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=label, unit=" images", leave=False) as bar:
            for batch in loader:
                yield batch
                bar.update(len(batch["image"]))
        return
    count, said = 0, time.monotonic()
    for batch in loader:
        yield batch
        count += len(batch["image"])
        if time.monotonic() - said >= every:
            print(f"{label}: {count}", file=sys.stderr, flush=True)
            said = time.monotonic()


def default_output(checkpoint):
    """`evaluation/<name of the checkpoint>` beside the checkpoint."""
    path = find_checkpoint(checkpoint)
    return path.parent / "evaluation" / path.name


def write_results(results, output, name):
    """Write results to `output/name.json` and `output/name.md` and print the table.

    Args:
        results: dict; numbers and strings make the table, everything goes into the JSON.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown_table(results)
    (output / f"{name}.md").write_text(table, encoding="utf-8")
    print(f"{table}written to {output / name}.json and .md")


def markdown_table(results):
    """Two columns, name and value, of the numbers and strings in a dict."""
    rows = [(key, f"{value:.4f}" if isinstance(value, float) else str(value))
            for key, value in results.items() if isinstance(value, (int, float, str))]
    widths = [max(len(row[i]) for row in (*rows, ("metric", "value"))) for i in range(2)]
    lines = [("metric", "value"), ("-" * widths[0], "-" * (widths[1] - 1) + ":"), *rows]
    return "".join(f"| {key:<{widths[0]}} | {value:>{widths[1]}} |\n" for key, value in lines)


def provenance(args, model, started):
    """Where results come from: config, checkpoint, stage, and the seconds since `started` (time.monotonic())."""
    return {"config": str(args.config), "checkpoint": str(find_checkpoint(args.checkpoint)), "stage": model.stage,
            "seconds": round(time.monotonic() - started, 1)}
