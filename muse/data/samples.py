"""From the raw files of one sample to the tensors and strings of a batch."""
import io
import json

import torch
from PIL import Image

from muse.data.transforms import DAMAGED, load_image

FIELDS = ("image", "caption", "label", "mask", "flipped")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class Decoder:
    """Raw sample -> {"image", ...requested fields}; ValueError says why a sample cannot be used."""

    def __init__(self, fields, preprocess, train):
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]!r}; a batch can hold {', '.join(FIELDS)}")
        self.fields, self.preprocess, self.train = set(fields) | {"image"}, preprocess, train

    def __call__(self, raw, rng=None):
        result = {}
        if "caption" in self.fields:
            result["caption"] = read_caption(raw)
        if "label" in self.fields:
            result["label"] = read_label(raw)
        mask = read_mask(raw) if "mask" in self.fields else None
        content = next((raw[extension] for extension in IMAGE_EXTENSIONS if extension in raw), None)
        if content is None:
            raise ValueError(f"no image ({', '.join(IMAGE_EXTENSIONS)})")
        # a reduced decoding would no longer have the mask's size
        image = load_image(content, self.preprocess.edge if self.train and mask is None else None)
        if mask is not None and mask.size != image.size:
            raise ValueError(f"mask of {mask.size} pixels on an image of {image.size}")
        result["image"], mask, flipped = self.preprocess(image, mask, rng)
        if mask is not None:
            result["mask"] = mask
        if self.train:
            result["flipped"] = flipped
        return result


def read_caption(raw):
    """Caption of the .txt file, else of `caption` or `text` in the .json file; an empty one is a ValueError."""
    candidates = [raw.get("txt", b"").decode("utf-8", "replace")]
    if "json" in raw:
        content = json.loads(raw["json"])  # JSONDecodeError is a ValueError
        if isinstance(content, dict):
            candidates += [content.get("caption"), content.get("text")]
    caption = next((text.strip() for text in candidates if isinstance(text, str) and text.strip()), None)
    if caption is None:
        raise ValueError("no caption (.txt, or `caption` or `text` in .json)")
    return caption


def read_label(raw):
    """Class index of the .cls file."""
    if "cls" not in raw:
        raise ValueError("no class label (.cls)")
    try:
        label = int(raw["cls"])
    except ValueError:
        raise ValueError(f"class label {raw['cls'][:20]!r} is not an integer") from None
    if label < 0:
        raise ValueError(f"class label {label} is negative")
    return label


def read_mask(raw):
    """Single-channel PIL image of class indices (.seg.png); a palette is never applied."""
    if "seg.png" not in raw:
        raise ValueError("no segmentation mask (.seg.png)")
    try:
        mask = Image.open(io.BytesIO(raw["seg.png"]))
        mask.load()
    except DAMAGED as error:
        raise ValueError(f"cannot read the mask: {error}") from error
    if len(mask.getbands()) != 1:
        raise ValueError(f"the mask has mode {mask.mode}; expected one channel of class indices")
    return mask


def collate(samples):
    """List of decoded samples -> batch (see `build_train_loader`)."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    for name in {"image", "mask"} & set(batch):
        batch[name] = torch.stack(batch[name])
    for name in {"label", "flipped"} & set(batch):
        batch[name] = torch.tensor(batch[name])
    return batch
