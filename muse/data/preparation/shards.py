"""Writes tar shards whose bytes depend on nothing but their samples."""
import io
import json
import os
import re
import tarfile
from pathlib import Path

from muse.data.index import INDEX_NAME
from muse.utils.downloads import sha256_of

SHARD = re.compile(r"(train|validation)-\d{6}\.tar(\.part)?")


class ShardWriter:
    """Samples -> DIRECTORY/SPLIT-000000.tar, ... of at most `samples_per_shard`; fixed times and owners, each shard
    renamed into place when complete. Use as a context manager; `.summary` then is the split's entry of dataset.json."""

    def __init__(self, directory, split, samples_per_shard=5000):
        self.directory, self.split, self.limit = Path(directory), split, samples_per_shard
        self.summary = {"samples": 0, "shards": {}}
        self.tar = None
        self.count = 0

    def __enter__(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind, error, traceback):
        if self.tar is not None:
            self.tar.close()
            if kind is None:
                self._finish()
            else:
                self._part().unlink()

    def write(self, key, files):
        """One sample: `files` maps an extension ("jpg", "seg.png") to bytes, str, or what JSON can hold."""
        if self.tar is None:
            self.tar, self.count = tarfile.open(self._part(), "w", format=tarfile.USTAR_FORMAT), 0
        for extension, content in files.items():
            content = encode(content)
            entry = tarfile.TarInfo(f"{key}.{extension}")
            entry.size = len(content)
            self.tar.addfile(entry, io.BytesIO(content))
        self.count += 1
        if self.count == self.limit:
            self.tar.close()
            self._finish()

    def _name(self):
        return f"{self.split}-{len(self.summary['shards']):06d}.tar"

    def _part(self):
        return self.directory / (self._name() + ".part")

    def _finish(self):
        part, name = self._part(), self._name()
        os.replace(part, self.directory / name)
        self.summary["shards"][name] = {"samples": self.count, "sha256": sha256_of(self.directory / name)}
        self.summary["samples"] += self.count
        self.tar = None


def encode(content):
    """bytes as they are, str as UTF-8, anything else as JSON."""
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode("utf-8")


def clear_previous(directory):
    """Remove what an earlier run, finished or not, left in this directory: its index, shards and partial shards. The
    index goes first, so that at no moment one describes data that are not all there."""
    directory = Path(directory)
    (directory / INDEX_NAME).unlink(missing_ok=True)
    for path in directory.glob("*-*.tar*"):
        if SHARD.fullmatch(path.name):
            path.unlink()


def summarise(left_out, examples=20):
    """{reason: list of names} -> {reason: {"count": n, "examples": the first names in order}} for the index."""
    return {reason: {"count": len(names), "examples": sorted(names)[:examples]}
            for reason, names in sorted(left_out.items())}


def print_left_out(summary):
    """Print a summary that `summarise` made, a line for each reason."""
    for reason, entry in summary.items():
        more = ", ..." if entry["count"] > 3 else ""
        print(f"left out, {reason}: {entry['count']} ({', '.join(entry['examples'][:3])}{more})")
