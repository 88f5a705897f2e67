"""Where shards are: expansion of the configuration's sources, and reading one shard."""
import glob
import math
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import braceexpand
from webdataset.gopen import gopen, set_options
from webdataset.tariterators import group_by_keys, tar_file_iterator

REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")


@dataclass(frozen=True)
class Source:
    """One part of a mixture. `names` are the shards' short names, unique in the whole mixture."""
    urls: tuple
    names: tuple
    weight: float


def find_sources(shards, key="shards"):
    """Sources of a configuration value: a path, glob, brace range, `pipe:` command or URL, a list of these, or a list
    of {shards, weight}. FileNotFoundError for what is not there, ValueError for what is not understood; `key` names the
    setting in messages."""
    if not shards:
        raise ValueError(f"{key} is not set: give a path, glob, brace range or list of shards")
    parts = shards if isinstance(shards, (list, tuple)) and any(_weighted(part) for part in shards) else [shards]
    expanded = []
    for part in parts:
        weight = 1.0
        if _weighted(part):
            unknown = set(part) - {"shards", "weight"}
            if unknown or not part.get("shards"):
                raise ValueError(f"{key}: a source of a mixture is {{shards, weight}}, got {part}")
            part, weight = part["shards"], part.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"{key}: weight {weight!r} of {part} must be a positive number")
        expanded.append((expand(part, key), float(weight)))
    everything = [url for urls, _ in expanded for url in urls]
    basenames = [_basename(url) for url in everything]
    return [Source(tuple(urls), tuple(_basename(url) if basenames.count(_basename(url)) == 1 else url for url in urls),
                   weight) for urls, weight in expanded]


def expand(shards, key="shards"):
    """List of shard URLs or existing paths, in order, without repetition."""
    if isinstance(shards, (list, tuple)):
        return list(dict.fromkeys(url for item in shards for url in expand(item, key)))
    if not isinstance(shards, (str, os.PathLike)):
        raise ValueError(f"{key}: expected a path, URL or list of these, got {shards!r}")
    urls = []
    for url in braceexpand.braceexpand(os.fspath(shards)):
        if REMOTE.match(url):
            urls.append(f"pipe:aws s3 cp {url} -" if url.startswith("s3://") else url)
            continue
        path = os.path.expanduser(url)
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not found:
            raise FileNotFoundError(f"{key}: no file matches {url}" + (f" (of {shards})" if url != str(shards) else ""))
        if os.path.isdir(path):
            raise ValueError(f"{key}: {url} is a directory; name its shards, for example {url.rstrip('/')}/train-*.tar")
        urls += found
    return urls


def read_shard(url):
    """Raw samples of a tar shard: dicts of lower-case extension -> bytes and `__key__`. OSError or tarfile.TarError
    where the shard breaks off; the sample it breaks in may lack files."""
    stream = Tail(url)
    try:
        files = ({**file, "__url__": url} for file in tar_file_iterator(stream))
        yield from group_by_keys(files, keys=split_name)
        if stream.breaks_off():
            raise OSError("it has no end-of-archive block")
    finally:
        stream.close()


class Tail:
    """A shard's binary stream that remembers how it ended: tarfile takes a file cut between members for a whole one."""

    COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # these notice a cut themselves

    def __init__(self, url):
        self.url, self.stream, self.first, self.last = url, gopen(url), b"", b""

    def __repr__(self):
        return self.url  # webdataset puts it into its messages

    def read(self, size):
        data = self.stream.read(size)
        self.first = self.first or data[:6]
        self.last = data[-tarfile.BLOCKSIZE:] if len(data) >= tarfile.BLOCKSIZE else self.last + data
        return data

    def breaks_off(self):
        return not self.first.startswith(self.COMPRESSED) and any(self.last[-tarfile.BLOCKSIZE:])

    def close(self):
        set_options(self.stream, ignore_errors=True)  # a pipe closed early ends by a signal; a failure cuts the tar
        self.stream.close()


def split_name(path):
    """(key, extension) of a member: dots are allowed in keys, `seg.png` is one extension."""
    match = re.match(r"^(.+?)\.(seg\.png|[^./]+)$", path, re.IGNORECASE)
    return match.groups() if match else (None, None)


def _weighted(part):
    return isinstance(part, dict)


def _basename(url):
    return url.rstrip(" -").rsplit("/", 1)[-1] if url.startswith("pipe:") else Path(url).name
