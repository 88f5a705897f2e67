"""Train and validation sides, near-duplicates kept together."""
import re

import numpy as np
from PIL import Image

ALIKE = 10.0  # mean absolute difference of two 16 x 16 RGB thumbnails (0..255) below which pictures count as one


def series_name(stem):
    """Stem without what tells members of a series apart: mirror marks, counters, a lone final letter."""
    name = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stem).lower()).strip("_")
    previous = None
    while name != previous:
        previous = name
        name = re.sub(r"_?(mirror|mirrored|left|right|background)$|_?\d+$|_[a-z]$", "", name).strip("_")
    return (name or stem.lower()).replace("_", "")


def thumbnail(image):
    """16 x 16 x 3 float32 picture of a PIL image, transparency over grey."""
    small = image.convert("RGBA").resize((16, 16))
    grey = Image.new("RGBA", small.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(grey, small).convert("RGB"), np.float32)


def group(names, thumbnails):
    """Group number of each item: the same `series_name`, or nearly the same picture, mirrored or not."""
    parent = list(range(len(names)))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    first = {}
    for i, name in enumerate(names):
        parent[root(i)] = root(first.setdefault(series_name(name), i))
    pictures = np.stack(thumbnails)  # N 16 16 3
    for i, picture in enumerate(pictures[:-1]):
        rest = pictures[i + 1:]
        distance = np.minimum(np.abs(rest - picture).mean((1, 2, 3)), np.abs(rest - picture[:, ::-1]).mean((1, 2, 3)))
        for j in np.flatnonzero(distance < ALIKE):
            parent[root(i)] = root(i + 1 + int(j))
    return [root(i) for i in range(len(names))]


def choose_validation(groups, fraction, rng):
    """Indices for validation: whole groups in random order, never passing `fraction` of the items by more than a
    group would justify, and at least one item on each side; empty when the items form a single group."""
    members = {}
    for i, number in enumerate(groups):
        members.setdefault(number, []).append(i)
    if len(members) < 2:
        return []
    target = max(1, round(fraction * len(groups)))
    chosen = []
    order = [list(members.values())[k] for k in rng.permutation(len(members))]
    for items in order:
        if len(chosen) + len(items) <= target:
            chosen += items
    return sorted(chosen or min(order, key=len))
