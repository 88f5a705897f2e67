"""`imagefolder`: class folders of images -> labelled shards."""
from pathlib import Path

from muse.data.preparation import images


def add_arguments(parser):
    """Options of the recipe."""
    parser.add_argument("--input", required=True, metavar="DIR", help="CLASS/IMAGE, at any depth below the class")
    parser.add_argument("--validation", metavar="DIR", help="validation images in folders of the same classes")
    images.add_common_arguments(parser)


def prepare(args):
    """Run the recipe; returns the index. The class names are the folders' (underscores become spaces), in order; a
    caption in IMAGE.txt comes along. ValueError for a folder without classes or with classes unknown to training."""
    images.check_arguments(args)
    if args.validation and args.validation_fraction:
        raise ValueError("give --validation or --validation-fraction, not both")
    folders = class_folders(args.input)
    left_out = {}
    items = find(args.input, folders, left_out)
    if args.validation:
        unknown = sorted(set(class_folders(args.validation)) - set(folders))
        if unknown:
            raise ValueError(f"class {unknown[0]} of {args.validation} is not in {args.input}")
        held_out = find(args.validation, folders, left_out)
        splits = {**images.split(items, 0, args.seed), "validation": images.split(held_out, 0, args.seed)["train"]}
    else:
        splits = images.split(items, args.validation_fraction, args.seed)
    classes = [name.replace("_", " ") for name in folders]
    return images.write(args, "imagefolder", splits, left_out, {"classes": classes})


def class_folders(folder):
    """Names of the class folders in order; FileNotFoundError / ValueError when there is no folder, or none in it."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no directory; --input and --validation take folders of class folders")
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no class folder; expected {folder}/CLASS/IMAGE")
    return names


def find(folder, folders, left_out):
    """Items of every class folder, labelled by its place in `folders`."""
    items = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        if len(relative.parts) < 2 or relative.parts[0] not in folders:
            left_out.setdefault("files outside class folders", []).append(relative.as_posix())
        elif images.is_image(path):
            caption = path.with_suffix(".txt")
            files = {"cls": str(folders.index(relative.parts[0])),
                     "json": {"class": relative.parts[0].replace("_", " "), "source": relative.as_posix()}}
            if caption.is_file():
                files["txt"] = caption.read_text(encoding="utf-8", errors="replace").strip()
            items.append(images.Item(relative.as_posix(), str(path), files))
        elif path.suffix.lower() != ".txt":
            left_out.setdefault("files that are no images", []).append(relative.as_posix())
    if not items:
        raise ValueError(f"no image in the class folders of {folder}")
    return items
