"""`captions`: images with captions, from a folder with .txt files or a CSV, JSONL or parquet table -> shards."""
import csv
import json
from pathlib import Path

from muse.data.preparation import images


def add_arguments(parser):
    """Options of the recipe."""
    parser.add_argument("--input", required=True, metavar="PATH",
                        help="folder of IMAGE with IMAGE.txt, or a .csv, .jsonl or .parquet table")
    parser.add_argument("--path-column", default="path", help="the table's column of image paths (path)")
    parser.add_argument("--caption-column", default="caption", help="the table's column of captions (caption)")
    parser.add_argument("--root", metavar="DIR", help="what the table's paths start from; default: its own folder")
    images.add_common_arguments(parser)


def prepare(args):
    """Run the recipe; returns the index. Images without a caption or a file are left out and counted."""
    images.check_arguments(args)
    source = Path(args.input)
    if not source.exists():
        raise FileNotFoundError(f"--input {source} does not exist")
    left_out = {}
    items = []
    for name, path, caption in from_folder(source) if source.is_dir() else from_table(source, args):
        if not path.is_file():
            left_out.setdefault("images that are missing", []).append(name)
        elif not caption:
            left_out.setdefault("images without a caption", []).append(name)
        else:
            items.append(images.Item(name, str(path), {"txt": caption, "json": {"caption": caption, "source": name}}))
    if not items:
        reason = ", ".join(f"{len(names)} {reason}" for reason, names in left_out.items()) or "it is empty"
        raise ValueError(f"no image with a caption in {source} ({reason})")
    return images.write(args, "captions", images.split(items, args.validation_fraction, args.seed), left_out, {})


def from_folder(folder):
    """(name, path, caption) of every image below a folder, in order."""
    for path in sorted(path for path in folder.rglob("*") if images.is_image(path)):
        text = path.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
        yield path.relative_to(folder).as_posix(), path, caption


def from_table(table, args):
    """(name, path, caption) of every row of a table, in order."""
    readers = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
    if table.suffix.lower() not in readers:
        raise ValueError(f"--input {table}: expected a folder or a table ending in {', '.join(readers)}")
    root = Path(args.root) if args.root else table.parent
    for number, row in enumerate(readers[table.suffix.lower()](table), 1):
        for column in (args.path_column, args.caption_column):
            if column not in row:
                raise ValueError(f"{table} row {number} has no column {column!r} (it has {', '.join(map(str, row))}); "
                                 "name it with --path-column and --caption-column")
        name = str(row[args.path_column] or "")
        yield name, root / name, str(row[args.caption_column] or "").strip()


def read_csv(path):
    """Rows of a CSV table with a header, as dicts."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def read_jsonl(path):
    """Rows of a table with one JSON object a line; ValueError names the line that is none."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is not a JSON object")
            yield row


def read_parquet(path):
    """Rows of a parquet table; ValueError when pyarrow is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: reading parquet needs pyarrow; install it with `pip install pyarrow`") from None
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()
