"""dataset.json: what a prepared directory of shards holds."""
import json
import os
from pathlib import Path

INDEX_NAME = "dataset.json"


def read_index(shards):
    """The index beside the shards: dict with `classes` (list of str, or absent) and `splits`
    ({split: {"samples": n, "shards": {name: {"samples": n, "sha256": hex}}}}); None when there is none.

    `shards`: a path, glob, brace range, list of these or of {shards, weight}; the first local directory with an index
    wins.
    """
    if isinstance(shards, dict):
        shards = shards["shards"]
    if isinstance(shards, (list, tuple)):
        return next((index for index in map(read_index, shards) if index is not None), None)
    if not shards or "://" in str(shards) or str(shards).startswith("pipe:"):
        return None
    path = Path(shards) if Path(shards).is_dir() else Path(shards).parent
    path = path / INDEX_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); prepare the data again") from error


def write_index(directory, index):
    """Write dataset.json whole or not at all."""
    path = Path(directory) / INDEX_NAME
    part = path.with_name(INDEX_NAME + ".part")
    part.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
