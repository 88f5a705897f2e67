"""Pictures from tensors: labelled grids of images."""
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

GAP, FONT_SIZE = 4, 13  # pixels


def to_pil(image):
    """3 x H x W in [0, 1] (clamped, rounded half up to 8 bits) -> PIL RGB image."""
    levels = torch.floor(image.detach().float().cpu().clamp(0, 1) * 255 + 0.5)
    return Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def image_grid(rows, row_labels=(), column_labels=()):
    """A picture with one row per tensor and one column per image.

    Args:
        rows: tensors of equal shape, each N x 3 x H x W in [0, 1].
        row_labels: a text left of each row.
        column_labels: a text above each column; too long ones are cut.

    Returns a PIL RGB image. Raises ValueError for unequal or empty rows and for a wrong number of labels.
    """
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) != 1 or not len(rows[0]):
        raise ValueError(f"an image grid needs rows of one equal, non-empty shape, got {sorted(shapes)}")
    count, _, height, width = shapes.pop()
    for labels, expected in ((row_labels, len(rows)), (column_labels, count)):
        if labels and len(labels) != expected:
            raise ValueError(f"got {len(labels)} labels for {expected} rows or columns: give one each, or none")
    font = ImageFont.load_default(FONT_SIZE)
    left = GAP + (max(int(font.getlength(text)) for text in row_labels) + GAP if row_labels else 0)
    top = GAP + (FONT_SIZE + 2 * GAP if column_labels else 0)
    size = left + count * (width + GAP), top + len(rows) * (height + GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(to_pil(image), (left + x * (width + GAP), top + y * (height + GAP)))
    for y, text in enumerate(row_labels):
        draw.text((GAP, top + y * (height + GAP) + height // 2), text, "black", font, anchor="lm")
    for x, text in enumerate(column_labels):
        draw.text((left + x * (width + GAP), GAP), _cut(text, font, width), "black", font)
    return canvas


def _cut(text, font, width):
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


class EvenlySpaced:
    """Keeps at most `2 * count` items of a stream of unknown length, evenly spaced; `items()` gives `count` of them."""

    def __init__(self, count):
        self.count, self.stride, self.seen, self.kept = count, 1, 0, []

    def add(self, item):
        """Offer the next item of the stream."""
        if self.seen % self.stride == 0:
            self.kept.append(item)
            if len(self.kept) > 2 * self.count:
                self.kept, self.stride = self.kept[::2], self.stride * 2
        self.seen += 1

    def items(self):
        """At most `count` items, first and last kept ones included."""
        chosen = np.linspace(0, len(self.kept) - 1, min(self.count, len(self.kept))).round().astype(int)
        return [self.kept[i] for i in chosen]
