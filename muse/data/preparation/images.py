"""What the recipes for existing images share: arguments, packing of image files, two splits, the index."""
import functools
import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from muse.data.index import write_index
from muse.data.preparation.shards import ShardWriter, clear_previous, print_left_out, summarise
from muse.data.samples import IMAGE_EXTENSIONS
from muse.data.transforms import load_image

READABLE = {f".{extension}" for extension in (*IMAGE_EXTENSIONS, "bmp", "gif", "tif", "tiff")}


@dataclass(frozen=True)
class Item:
    """One image file and what goes beside it in its sample, by extension."""
    name: str
    path: str
    files: dict = field(default_factory=dict)


def add_common_arguments(parser):
    """Options that every recipe for existing images has."""
    parser.add_argument("--output", required=True, metavar="DIR", help="where shards and dataset.json go")
    parser.add_argument("--validation-fraction", type=float, default=0.0, help="share held out for validation (0)")
    parser.add_argument("--size", type=int, help="shrink to this shorter edge in pixels; default: files as they are")
    parser.add_argument("--samples-per-shard", type=int, default=5000, help="(5000)")
    parser.add_argument("--seed", type=int, default=0, help="decides the split and the order (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the result does not depend on it")


def check_arguments(args):
    """ValueError for a common option out of its range."""
    if not 0 <= args.validation_fraction < 1:
        raise ValueError(f"--validation-fraction must be at least 0 and below 1, got {args.validation_fraction}")
    for name in ("size", "samples_per_shard", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def is_image(path):
    """Whether a path is a file of a kind that the recipes read."""
    return path.suffix.lower() in READABLE and path.is_file()


def split(items, fraction, seed):
    """{split: items in random order}; `fraction` of them, one at least, for validation when it is not 0."""
    order = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
    held_out = 0 if fraction == 0 else max(1, round(fraction * len(items)))
    if held_out and held_out >= len(items):
        raise ValueError(f"{len(items)} image(s) cannot be split into training and validation; add images")
    return {"train": order[held_out:], **({"validation": order[:held_out]} if held_out else {})}


def write(args, recipe, splits, left_out, extra):
    """Pack {split: items} into shards with their index, print the counts; returns the index. Unreadable images go to
    `left_out`; ValueError when a split keeps none."""
    clear_previous(args.output)
    index = {"format": 1, "recipe": recipe, "size": args.size, "seed": args.seed, **extra, "splits": {}}
    for name, items in splits.items():
        index["splits"][name] = write_split(args, name, items, left_out)
        if not index["splits"][name]["samples"]:
            raise ValueError(f"none of the {len(items)} {name} images can be read, for example {items[0].path}")
    index["left_out"] = summarise(left_out)
    write_index(args.output, index)
    for name, entry in index["splits"].items():
        print(f"{name}: {entry['samples']} images in {len(entry['shards'])} shard(s)")
    print_left_out(index["left_out"])
    return index


def write_split(args, name, items, left_out):
    """Write the shards of one split; returns its entry of dataset.json."""
    pack = functools.partial(pack_item, size=args.size)
    with ShardWriter(args.output, name, args.samples_per_shard) as writer, ProcessPoolExecutor(args.workers) as pool:
        packed = pool.map(pack, items, chunksize=16)
        for i, (item, files) in enumerate(tqdm(zip(items, packed), name, len(items), unit="image", disable=None)):
            if isinstance(files, dict):
                writer.write(f"{i:08d}", files)
            else:
                left_out.setdefault("images that cannot be read", []).append(f"{item.name} ({files})")
    return writer.summary


def pack_item(item, size):
    """Files of a sample: the image's own bytes, or a smaller JPEG when `size` asks for it; a str says what failed."""
    try:
        image = load_image(item.path)
        content = Path(item.path).read_bytes()
    except (OSError, ValueError) as error:
        return str(error)
    extension = Path(item.path).suffix.lower()[1:]
    if size is not None and min(image.size) > size:
        image = image.resize([side * size // min(image.size) for side in image.size], Image.LANCZOS)
    elif extension in IMAGE_EXTENSIONS:
        return {extension: content, **item.files}
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return {"jpg": buffer.getvalue(), **item.files}
