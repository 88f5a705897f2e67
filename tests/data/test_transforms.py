import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from muse.config.schema import PreprocessingConfig
from muse.data.transforms import Preprocess, load_image, pad_to_multiple, to_tensor


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.BICUBIC)


def palette_image():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


@pytest.mark.parametrize("image, expected", [
    (Image.new("L", (4, 3), 77), (77, 77, 77)), (Image.new("1", (4, 3), 1), (255, 255, 255)),
    (Image.new("RGBA", (4, 3), (200, 0, 0, 0)), (255, 255, 255)), (Image.new("LA", (4, 3), (0, 128)), (127, 127, 127)),
    (palette_image(), (10, 200, 30)), (Image.fromarray(np.full((3, 4), 51400, np.uint16)), (200, 200, 200)),
    (Image.fromarray(np.full((3, 4), 65535, np.uint16)), (255, 255, 255))])
def test_every_mode_becomes_rgb(image, expected):
    found = load_image(encode(image))
    assert found.mode == "RGB" and found.size == (4, 3)
    assert np.abs(np.array(found).astype(int) - expected).max() <= 1


def test_cmyk_jpeg():
    found = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.array(found).astype(int) - (255, 0, 0)).max() <= 4


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (20, 10))
    image.paste((255, 255, 255), (0, 0, 10, 10))  # white at the left
    exif = Image.Exif()
    exif[274] = 6  # shown after a clockwise quarter turn
    found = load_image(encode(image, "JPEG", exif=exif, quality=100))
    assert found.size == (10, 20) and found.getpixel((5, 2))[0] > 250 > 5 > found.getpixel((5, 17))[0]


@pytest.mark.parametrize("content", [b"", b"text", encode(photograph(), "JPEG")[:300], encode(photograph())[:-60]])
def test_unreadable_bytes_are_a_value_error(content):
    with pytest.raises(ValueError, match="cannot read the image"):
        load_image(content)


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="broken.png"):
        load_image(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "absent.png")


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="decompression bomb"):
        load_image(encode(photograph()))


def test_reduced_decoding_keeps_the_edge_asked_for():
    content = encode(photograph(800, 600), "JPEG")
    assert load_image(content, min_edge=100).size == (200, 150)
    assert load_image(content, min_edge=151).size == (400, 300)
    assert load_image(content).size == (800, 600)
    assert load_image(encode(photograph(800, 600)), min_edge=100).size == (800, 600)


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (40, 40), (9, 13)])
def test_evaluation_geometry_is_torchvisions(size):
    image = photograph(*size)
    reference = v2.Compose([v2.Resize(24, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(17)])
    found, mask, flipped = Preprocess(PreprocessingConfig(24, 17), train=False)(image)
    assert torch.equal(found, to_tensor(reference(image))) and mask is None and flipped is False


def test_mask_moves_with_its_image():
    rng = np.random.default_rng(0)
    image = photograph(50, 40)
    mask = Image.fromarray((np.array(image)[..., 0] > 128).astype(np.uint8) * 9)
    transform = Preprocess(PreprocessingConfig(40, 32, True, True), train=True)
    offsets, flips = set(), set()
    for _ in range(20):
        tensor, labels, flipped = transform(image, mask, rng)
        assert torch.equal(labels, (tensor[0] > 128) * 9)
        offsets.add(tuple(tensor[0, 0, :4].tolist()))
        flips.add(flipped)
    assert flips == {True, False} and len(offsets) > 10


def test_resized_mask_holds_no_labels_between_its_labels():
    image = photograph(50, 40)
    mask = Image.fromarray(np.where(np.array(image)[..., 0] > 128, 150, 7).astype(np.uint8))
    for edge in (17, 90):
        labels = Preprocess(PreprocessingConfig(edge, edge), train=False)(image, mask)[1]
        assert labels.shape == (edge, edge) and labels.unique().tolist() == [7, 150]


def test_training_without_random_parts_is_the_evaluation_view():
    image = photograph()
    config = PreprocessingConfig(24, 20, random_crop=False, random_flip=False)
    assert torch.equal(Preprocess(config, train=True)(image)[0], Preprocess(config, train=False)(image)[0])


@pytest.mark.parametrize("height, width, padded", [(8, 8, (8, 8)), (7, 9, (8, 16)), (1, 15, (8, 16))])
def test_pad_to_multiple(height, width, padded):
    images = torch.rand(2, 3, height, width)
    result, (h, w) = pad_to_multiple(images, 8)
    assert result.shape[-2:] == padded and torch.equal(result[..., :h, :w], images)
    assert torch.equal(result[..., :height, -1], images[..., -1])
