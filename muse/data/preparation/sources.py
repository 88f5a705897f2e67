"""The public material of the `photographs` recipe: Tux Paint's stamps and GCompris' photographs, both from Debian."""
import os
import re
import struct
import zlib
from pathlib import Path

from muse.utils.downloads import default_cache, extract_deb, fetch_deb

STAMPS = ("tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34")
PHOTOGRAPHS = ("gcompris-qt-data", "3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f")

# Folders of the stamps that hold photographs of one kind of thing, and the name of that kind in a prompt. The longest
# matching prefix counts; every other folder (drawings, letters, mixed seasons) is left out, and so is every
# `cartoon` folder.
STAMP_CLASSES = {
    "animals/birds": "birds", "animals/fish": "sea animals", "animals/shellfish": "sea animals",
    "animals/insects": "insects", "animals/mammals": "mammals", "animals/mammals/aquatic": "sea animals",
    "animals/marsupials": "mammals", "food/fruit": "fruit", "food/vegetables": "vegetables", "food/nuts": "nuts",
    "hobbies/music": "musical instruments", "household": "household objects", "household/tools": "tools",
    "medical": "medical supplies", "military/vehicles": "vehicles", "plants": "trees and shrubs",
    "plants/flowers": "flowers", "plants/mushrooms": "mushrooms", "seasonal/halloween/grave": "gravestones",
    "space/planets": "planets", "space/moon": "planets", "sports": "sports equipment", "town/roadsigns": "road signs",
    "vehicles": "vehicles",
}
DRAWINGS = ("animals/mammals/hedgehog", "animals/mammals/echidna")  # not in a cartoon folder, drawn all the same
# Parts of GCompris that show places; its animals and objects would contradict the label of what is pasted on them.
PLACES = re.compile(r"explore_monuments/resource/|categorization/resource/images/(monuments|renewable)/"
                    r"|details/resource/image/.*_background|clickgame/resource/sea\d")
NOT_PHOTOGRAPHS = ("Gogh", "PortraitOfPereTanguy", "Eglise_dAuvers", "castleClinton")  # paintings, one in grey


def stamp_class(relative):
    """Class of a stamp's path relative to the stamps folder, or None when its folder is not used."""
    folder = relative.as_posix()
    matches = [prefix for prefix in STAMP_CLASSES if folder.startswith(prefix)]
    if not matches or {"cartoon", "toys", "plastic"} & set(relative.parts) or folder.startswith(DRAWINGS):
        return None
    return STAMP_CLASSES[max(matches, key=len)]


def stamps_folder(cache=None):
    """Folder of the stamps, fetched on first use."""
    folder = _unpacked(STAMPS, cache)
    return folder / "usr" / "share" / "tuxpaint" / "stamps"


def photographs_folder(cache=None):
    """Folder of webp photographs taken out of GCompris' resource files, fetched on first use. Raises ValueError when
    the package holds none (another release of it may keep them elsewhere)."""
    archives = _unpacked(PHOTOGRAPHS, cache) / "usr" / "share" / "gcompris-qt" / "rcc"
    folder = archives.parent / "photographs"
    if folder.is_dir():
        return folder
    part = folder.with_name("photographs.part")
    part.mkdir(exist_ok=True)
    for archive in sorted(archives.glob("*.rcc")):
        for path, content in read_rcc(archive.read_bytes()):
            if PLACES.search(path) and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
                (part / "_".join(path.split("/")[-2:])).write_bytes(content)
    if not any(part.iterdir()):
        raise ValueError(f"no photograph of places in {archives}/*.rcc: give a folder of your own with --backgrounds")
    os.replace(part, folder)
    return folder


def read_rcc(data):
    """(path, content) of every file in a Qt binary resource (Qt's `rcc --binary`, format versions 1 to 3, big-endian:
    a tree of 14- or 22-byte nodes beside tables of names and of length-prefixed, perhaps zlib-packed contents)."""
    magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres":
        raise ValueError("not a Qt resource file: it does not start with qres")
    node_size = 14 if version < 2 else 22

    def walk(node, prefix):
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + node * node_size)
        length, = struct.unpack_from(">H", data, names + name)
        start = names + name + 6  # length (2 bytes), hash (4), UTF-16
        path = f"{prefix}/{data[start:start + 2 * length].decode('utf-16-be')}" if node else ""
        if flags & 2:  # directory: number of children, first child
            for child in range(second, second + first):
                yield from walk(child, path)
            return
        size, = struct.unpack_from(">I", data, contents + second)
        content = data[contents + second + 4:contents + second + 4 + size]
        if not flags & 4:  # 4: Zstandard, which no image of these archives uses
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def _unpacked(source, cache):
    cache = Path(cache or default_cache())
    package = fetch_deb(*source, cache)
    return extract_deb(package, cache / package.stem)
