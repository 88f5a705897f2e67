"""Images in: any file or bytes -> PIL RGB -> uint8 tensors of the size that a network takes."""
import io
import math
import os
import struct

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

# what PIL's decoders and metadata readers raise on damaged files
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error,
           Image.DecompressionBombError)


def load_image(source, min_edge=None):
    """PIL RGB image of a path, bytes or binary file, upright (EXIF), transparency over white, 16 bits scaled to 8.

    `min_edge`: a JPEG may be decoded at a reduced DCT scale that keeps its shorter edge at least this long.
    ValueError names what could not be read; PIL's decompression-bomb guard stays on.
    """
    name = source if isinstance(source, (str, os.PathLike)) else "the image"
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    try:
        with Image.open(source) as image:
            if min_edge is not None and min(image.size) > min_edge:
                factor = min_edge / min(image.size)
                image.draft(None, tuple(math.ceil(side * factor) for side in image.size))
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"cannot read {name}: {error}") from error


def to_rgb(image):
    """PIL image of any mode -> RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def to_tensor(image):
    """PIL RGB image -> uint8 tensor 3 x H x W."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def pad_to_multiple(images, divisor):
    """B x C x H x W padded at the right and bottom (edge pixels repeated) until both sides divide by `divisor`.

    Returns (padded, crop) with crop = (H, W) such that padded[..., :H, :W] is the input.
    """
    height, width = images.shape[-2:]
    pad = (0, -width % divisor, 0, -height % divisor)
    return (F.pad(images, pad, mode="replicate") if any(pad) else images), (height, width)


class Preprocess:
    """Shorter edge resized (bicubic, antialiased), then cropped to a square; in training at random and mirrored."""

    def __init__(self, config, train):
        """`config`: PreprocessingConfig. ValueError when the crop is larger than the resized image."""
        if not 0 < config.crop_size <= config.resize_shorter_edge:
            raise ValueError(f"dataset.preprocessing.crop_size {config.crop_size} must be between 1 and "
                             f"resize_shorter_edge {config.resize_shorter_edge}; raise resize_shorter_edge")
        self.edge, self.crop = config.resize_shorter_edge, config.crop_size
        self.random_crop = train and config.random_crop
        self.random_flip = train and config.random_flip

    def __call__(self, image, mask=None, rng=None):
        """PIL RGB (and PIL mask of its size) -> (uint8 3 x S x S, int64 S x S or None, flipped). Images smaller than
        the crop are enlarged. `rng`: numpy generator, needed for the random parts."""
        size = tuple(side * self.edge // min(image.size) for side in image.size)
        spare = [side - self.crop for side in size]
        left, top = (int(rng.integers(n + 1)) for n in spare) if self.random_crop else (round(n / 2) for n in spare)
        flipped = bool(self.random_flip and rng.integers(2))
        box = (left, top, left + self.crop, top + self.crop)
        images = [image.resize(size, Image.BICUBIC)] + ([mask.resize(size, Image.NEAREST)] if mask is not None else [])
        images = [ImageOps.mirror(one.crop(box)) if flipped else one.crop(box) for one in images]
        labels = torch.from_numpy(np.array(images[1]).astype(np.int64)) if mask is not None else None
        return to_tensor(images[0]), labels, flipped
