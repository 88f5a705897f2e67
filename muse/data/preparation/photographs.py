"""`photographs`: cut-outs pasted on photographs, with caption, class and exact segmentation mask."""
import functools
import io
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from muse.data.index import write_index
from muse.data.preparation import sources, splitting
from muse.data.preparation.shards import ShardWriter, clear_previous, print_left_out, summarise
from muse.data.transforms import load_image

SPLITS = ("train", "validation")
VALIDATION_FRACTION = 0.18
SMALLEST_CLASS = 8        # cut-outs; a smaller class cannot show anything on both sides
OBJECT_SIDE = (0.45, 0.75)  # longer side of the object, as a share of the picture's
IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Cutout:
    name: str      # path relative to the folder, without suffix
    path: str
    label: str
    caption: str


def add_arguments(parser):
    """Options of the recipe."""
    parser.add_argument("--output", required=True, metavar="DIR", help="where shards and dataset.json go")
    parser.add_argument("--size", type=int, default=112, help="side of the pictures in pixels (112)")
    parser.add_argument("--per-cutout", type=int, default=5, help="training pictures of each cut-out (5)")
    parser.add_argument("--validation-per-cutout", type=int, default=6,
                        help="validation pictures of each cut-out (6)")
    parser.add_argument("--seed", type=int, default=0, help="decides the split and every composition (0)")
    parser.add_argument("--cutouts", metavar="DIR", help="your own: CLASS/NAME.png with alpha, caption in NAME.txt")
    parser.add_argument("--backgrounds", metavar="DIR", help="your own folder of photographs")
    parser.add_argument("--cache", metavar="DIR", help="where downloads are kept (MUSE_CACHE, else ~/.cache/muse)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the result does not depend on it")


def prepare(args):
    """Run the recipe; returns the index. ValueError when the material cannot give two sides of at least two classes."""
    for name in ("size", "per_cutout", "validation_per_cutout", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for folder in (args.cutouts, args.backgrounds):
        if folder and not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is no directory; --cutouts and --backgrounds take folders")
    left_out = {}
    cutouts = find_cutouts(args.cutouts or sources.stamps_folder(args.cache), bool(args.cutouts), args.size, left_out)
    backgrounds = find_backgrounds(args.backgrounds or sources.photographs_folder(args.cache),
                                   bool(args.backgrounds), args.size, left_out)
    cutout_sides = split_cutouts(cutouts, args.seed, left_out)
    background_sides = split_backgrounds(backgrounds, args.seed)
    classes = sorted({cutout.label for cutout in cutout_sides["train"]})
    clear_previous(args.output)
    index = {"format": 1, "recipe": "photographs", "size": args.size, "seed": args.seed, "classes": classes,
             "splits": {}, "left_out": summarise(left_out)}
    for split, repeats in zip(SPLITS, (args.per_cutout, args.validation_per_cutout)):
        jobs = plan(cutout_sides[split], background_sides[split], repeats, args.seed)
        index["splits"][split] = write_split(args, split, jobs, classes)
        index["splits"][split]["cutouts"] = len(cutout_sides[split])
        index["splits"][split]["backgrounds"] = len(background_sides[split])
    write_index(args.output, index)
    report(index, cutout_sides)
    return index


def find_cutouts(folder, own, size, left_out):
    """Usable cut-outs below `folder`, in order of name; the others go to `left_out` by reason."""
    folder = Path(folder)
    found = []
    for path in sorted(folder.rglob("*.png")) + sorted(folder.rglob("*.webp")):
        relative = path.relative_to(folder)
        name = relative.with_suffix("").as_posix()
        label = (relative.parts[0].replace("_", " ") if len(relative.parts) > 1 else None) if own \
            else sources.stamp_class(relative)
        caption = read_caption(path.with_suffix(".txt"))
        reason = ("in no class folder or drawn" if label is None else "without a caption" if not caption
                  else unusable(path, size))
        if reason:
            left_out.setdefault("cut-outs " + reason, []).append(name)
        else:
            found.append(Cutout(name, str(path), label, caption))
    if not found:
        raise ValueError(f"no usable cut-out in {folder}: expected CLASS/NAME.png with transparency and NAME.txt")
    return found


def read_caption(path):
    """First line of a text file (Tux Paint: English, translations follow); "" when the file is missing."""
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].strip() if lines else ""


def unusable(path, size):
    """Why a cut-out cannot be used, or None."""
    try:
        image = open_cutout(path)
    except (OSError, ValueError):
        return "that cannot be read as RGBA"
    if image is None:
        return "without any opaque pixel"
    if max(image.size) < size * OBJECT_SIDE[1] / 2:
        return f"under {round(size * OBJECT_SIDE[1] / 2)} pixels"
    if (np.asarray(image)[..., 3] >= 128).mean() < 0.12:
        return "that are mostly empty"
    return None


def open_cutout(path):
    """RGBA image trimmed to what is visible, or None."""
    with Image.open(path) as image:
        if not image.has_transparency_data:
            raise ValueError(f"{path} has no transparency")
        image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
    return image.crop(box) if box else None


def find_backgrounds(folder, own, size, left_out):
    """Paths of photographs with both sides of at least `size` pixels, in order of name."""
    found = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        reason = None
        if not own and any(part in path.stem for part in sources.NOT_PHOTOGRAPHS):
            reason = "that are no colour photographs"
        else:
            try:
                reason = f"under {size} pixels" if min(load_image(path).size) < size else None
            except ValueError:
                reason = "that cannot be read"
        if reason:
            left_out.setdefault("backgrounds " + reason, []).append(path.stem)
        else:
            found.append(str(path))
    if len(found) < 2:
        raise ValueError(f"{len(found)} usable background in {folder}: two photographs of {size} pixels are the least")
    return found


def split_cutouts(cutouts, seed, left_out):
    """{split: list of Cutout}: near-duplicates on one side, classes too small for two sides left out."""
    groups = splitting.group([Path(c.name).name for c in cutouts],
                             [splitting.thumbnail(open_cutout(c.path)) for c in cutouts])
    sides = {split: [] for split in SPLITS}
    for label in sorted({cutout.label for cutout in cutouts}):
        members = [i for i, cutout in enumerate(cutouts) if cutout.label == label]
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        held_out = splitting.choose_validation([groups[i] for i in members], VALIDATION_FRACTION, rng)
        if len(members) < SMALLEST_CLASS or not held_out:
            left_out[f"cut-outs of the class {label}, too few or too alike to split"] = [
                cutouts[i].name for i in members]
            continue
        for k, i in enumerate(members):
            sides["validation" if k in held_out else "train"].append(cutouts[i])
    if len({cutout.label for cutout in sides["train"]}) < 2:
        raise ValueError(f"fewer than two classes with {SMALLEST_CLASS} different cut-outs; add cut-outs or classes")
    return sides


def split_backgrounds(backgrounds, seed):
    """{split: list of paths}, near-duplicates on one side."""
    groups = splitting.group([Path(path).stem for path in backgrounds],
                             [splitting.thumbnail(load_image(path)) for path in backgrounds])
    held_out = set(splitting.choose_validation(groups, VALIDATION_FRACTION, np.random.default_rng([seed, 1])))
    if not held_out:
        raise ValueError("all backgrounds are variants of one photograph: validation needs another one")
    return {"train": [path for i, path in enumerate(backgrounds) if i not in held_out],
            "validation": [path for i, path in enumerate(backgrounds) if i in held_out]}


def plan(cutouts, backgrounds, repeats, seed):
    """(cutout, background, seeds) of every picture, shuffled; a picture depends on its cut-out, not on the others."""
    jobs = []
    for cutout in cutouts:
        for k in range(repeats):
            seeds = [seed, zlib.crc32(cutout.name.encode()), k]
            jobs.append((cutout, backgrounds[np.random.default_rng(seeds).integers(len(backgrounds))], seeds))
    return [jobs[i] for i in np.random.default_rng([seed, len(jobs)]).permutation(len(jobs))]


def write_split(args, split, jobs, classes):
    """Render and write the shards of one split; returns its entry of dataset.json."""
    render = functools.partial(render_job, size=args.size, classes=classes)
    with ShardWriter(args.output, split) as writer, ProcessPoolExecutor(args.workers) as pool:
        rendered = pool.map(render, jobs, chunksize=16)
        for i, files in enumerate(tqdm(rendered, split, len(jobs), unit="picture", disable=None)):
            writer.write(f"{i:06d}", files)
    return writer.summary


def render_job(job, size, classes):
    """Files of one sample (extension -> content) of one entry of `plan`."""
    cutout, background, seeds = job
    picture, mask = compose(open_cutout(cutout.path), open_background(background, size), size,
                            np.random.default_rng([*seeds, 1]))
    label = classes.index(cutout.label)
    segmentation = Image.fromarray(np.where(mask, label + 1, 0).astype(np.uint8))
    return {"jpg": save(picture, "JPEG", quality=95, subsampling=0), "txt": cutout.caption, "cls": str(label),
            "seg.png": save(segmentation, "PNG"),
            "json": {"caption": cutout.caption, "class": cutout.label, "cutout": cutout.name,
                     "background": Path(background).stem}}


@functools.lru_cache(maxsize=128)
def open_background(path, size):
    """RGB photograph, reduced to a shorter edge of four picture sides at most."""
    image = load_image(path)
    factor = 4 * size / min(image.size)
    return image if factor >= 1 else image.resize([round(side * factor) for side in image.size], Image.LANCZOS)


def compose(cutout, background, size, rng):
    """Paste an RGBA cut-out at a random size and place on a random square of an RGB background.

    Returns (RGB image of size x size, bool mask H x W of pixels that the object covers by half or more).
    """
    square = round(rng.uniform(max(0.5, size / min(background.size)), 1) * min(background.size))
    left, top = (int(rng.integers(side - square + 1)) for side in background.size)
    picture = background.crop((left, top, left + square, top + square)).resize((size, size), Image.LANCZOS)
    factor = rng.uniform(*OBJECT_SIDE) * size / max(cutout.size)
    width, height = (max(1, round(side * factor)) for side in cutout.size)
    cutout = cutout.resize((width, height), Image.LANCZOS)  # PIL premultiplies: hidden colours do not bleed out
    left, top = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    picture.paste(cutout, (left, top), cutout)
    mask = np.zeros((size, size), bool)
    mask[top:top + height, left:left + width] = np.asarray(cutout)[..., 3] >= 128
    return picture, mask


def save(image, kind, **options):
    """Encoded bytes of a PIL image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def report(index, sides):
    """Print counts by split and class, and what was left out."""
    for split, entry in index["splits"].items():
        print(f"{split}: {entry['samples']} pictures of {entry['cutouts']} cut-outs on {entry['backgrounds']} "
              f"backgrounds in {len(entry['shards'])} shard(s)")
    counts = {split: Counter(cutout.label for cutout in sides[split]) for split in SPLITS}
    for label in index["classes"]:
        print(f"  {label}: {counts['train'][label]} + {counts['validation'][label]}")
    print_left_out(index["left_out"])
