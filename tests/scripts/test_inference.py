import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

MODES = {"grey.png": "L", "palette.png": "P", "alpha.png": "RGBA", "grey_alpha.png": "LA", "bilevel.png": "1",
         "cmyk.jpg": "CMYK", "plain.webp": "RGB", "sixteen.png": "I;16"}


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path, mode, size=(37, 23)):
    if mode == "I;16":
        values = np.linspace(0, 65535, size[0] * size[1]).reshape(size[::-1]).astype(np.uint16)
        Image.fromarray(values).save(path)
    else:
        picture(*size).convert(mode).save(path)


def test_any_mode_keeps_its_size(tiny, flags, call, tmp_path):
    (tmp_path / "in").mkdir()
    for name, mode in MODES.items():
        save(tmp_path / "in" / name, mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to be upright
    picture(30, 16).save(tmp_path / "in/rotated.jpg", exif=exif)
    picture(1, 1).save(tmp_path / "in/pixel.png")
    status, out, err = call("inference", *flags, "--image_path", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert status == 0 and not err
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    expected = {f"{name.split('.')[0]}_reconstruction.png": (37, 23) for name in MODES}
    assert sizes == expected | {"rotated_reconstruction.png": (16, 30), "pixel_reconstruction.png": (1, 1)}
    assert out.count("PSNR") == 10 and "10 of 10 images" in out


def test_reconstruction_is_the_models_padded_and_cropped(tiny, flags, call, tmp_path):
    import torch

    from muse.data.transforms import pad_to_multiple, to_tensor
    from muse.models import MUSE_ViT
    image = picture(40, 30)
    image.save(tmp_path / "a.png")
    call("inference", *flags, "--image_path", tmp_path / "a.png", "--output_dir", tmp_path)
    model = MUSE_ViT.from_pretrained(tiny / "run/checkpoint-000002")
    padded, (height, width) = pad_to_multiple(to_tensor(image)[None].float() / 255, model.size_divisor)
    with torch.no_grad():
        expected = model(padded).reconstruction[0, :, :height, :width].clamp(0, 1) * 255
    written = torch.from_numpy(np.array(Image.open(tmp_path / "a_reconstruction.png"))).permute(2, 0, 1)
    assert (written - expected).abs().max() <= 0.51


def test_latents_and_comparison(tiny, flags, call, tmp_path):
    picture(40, 30).save(tmp_path / "a.png")
    for kind in ("npz", "safetensors"):
        status, *_ = call("inference", *flags, "--image_path", tmp_path / "a.png", "--output_dir", tmp_path / "out",
                          "--save_latents", kind, "--side_by_side")
        assert status == 0
    stored, other = np.load(tmp_path / "out/a_latent.npz"), load_file(tmp_path / "out/a_latent.safetensors")
    assert stored["latent"].shape == (8, 3, 3) and stored["size"].tolist() == [30, 40]  # sides divide by 14
    assert np.array_equal(stored["latent"], other["latent"]) and other["size"].tolist() == [30, 40]
    assert Image.open(tmp_path / "out/a_comparison.png").width > 40


@pytest.mark.parametrize("option, expected", [
    (("--resize", 20), (40, 20)), (("--max_side", 42), (42, 21)), (("--max_side", 999), (80, 40)),
    (("--pad",), (80, 40))])
def test_sizes(tiny, flags, call, tmp_path, option, expected):
    picture(80, 40).save(tmp_path / "a.png")
    status, *_ = call("inference", *flags, "--image_path", tmp_path / "a.png", "--output_dir", tmp_path / "out",
                      *option)
    assert status == 0 and Image.open(tmp_path / "out/a_reconstruction.png").size == expected


def test_equal_stems_do_not_overwrite_each_other(tiny, flags, call, tmp_path):
    (tmp_path / "in").mkdir()
    picture(28, 28).save(tmp_path / "in/a.png")
    picture(28, 14).save(tmp_path / "in/a.jpg")
    call("inference", *flags, "--image_path", tmp_path / "in", "--output_dir", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png_reconstruction.png", "a.jpg_reconstruction.png"}


def test_results_beside_the_images_are_not_taken_for_images(tiny, flags, call, tmp_path):
    for name in ("a.png", "b.png", "b.jpg", "their_reconstruction.png"):
        picture(28, 28).save(tmp_path / name)
    for _ in range(2):
        status, out, _ = call("inference", *flags, "--image_path", tmp_path, "--output_dir", tmp_path, "--side_by_side")
        assert status == 0 and "4 of 4 images" in out
    assert len(list(tmp_path.iterdir())) == 12


def test_broken_image_is_named_and_the_others_are_done(tiny, flags, call, tmp_path):
    (tmp_path / "in").mkdir()
    picture(28, 28).save(tmp_path / "in/good.png")
    (tmp_path / "in/bad.jpg").write_bytes(b"not an image")
    status, out, err = call("inference", *flags, "--image_path", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert status == 1 and "bad.jpg" in err and "skipped" in err and len(err.splitlines()) == 1
    assert (tmp_path / "out/good_reconstruction.png").is_file() and "1 of 2 images" in out


@pytest.mark.parametrize("make, message", [
    (lambda path: path.mkdir(), "no image in"), (lambda path: None, "no image or folder at"),
    (lambda path: path.write_bytes(b"broken"), "cannot read")])
def test_nothing_to_reconstruct(tiny, flags, call, tmp_path, make, message):
    make(tmp_path / "in")
    status, out, err = call("inference", *flags, "--image_path", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert status == 1 and message in err and "Traceback" not in err


def test_missing_checkpoint(tiny, call, tmp_path):
    picture(28, 28).save(tmp_path / "a.png")
    status, _, err = call("inference", "--config", tiny / "config.yaml", "--checkpoint", tmp_path / "nowhere",
                          "--image_path", tmp_path / "a.png", "--output_dir", tmp_path / "out")
    assert status == 1 and "no checkpoint at" in err and len(err.splitlines()) == 1


def test_senseless_size(tiny, flags, call, tmp_path):
    picture(28, 28).save(tmp_path / "a.png")
    status, _, err = call("inference", *flags, "--image_path", tmp_path / "a.png", "--output_dir", tmp_path,
                          "--resize", 0)
    assert status == 1 and "--resize 0" in err
