"""Reconstruct one image or every image of a folder.

    python scripts/inference.py --config configs/muse_tiny/stage3.yaml --checkpoint outputs/muse_tiny/stage3 \
        --image_path photographs --output_dir outputs/inference
"""
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from muse.data.transforms import load_image, pad_to_multiple, to_tensor
from muse.evaluation import runtime
from muse.evaluation.evaluator import full_precision, psnr, round_to_8_bits
from muse.utils.cli import parse, parser, run
from muse.utils.viz_utils import image_grid, to_pil

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
WRITTEN = ("reconstruction", "comparison")


def build_flags():
    flags = runtime.add_flags(parser(
        "Reconstruct images of any size and mode. Sides that the model cannot divide are padded by repeating the edge, "
        "and the reconstruction is cropped back to the image's size."))
    flags.add_argument("--image_path", required=True, metavar="PATH", help="an image, or a folder of images")
    flags.add_argument("--output_dir", required=True, metavar="DIR", help="NAME_reconstruction.png goes here")
    size = flags.add_mutually_exclusive_group()
    size.add_argument("--pad", action="store_true", help="keep the image's size (this is the default)")
    size.add_argument("--resize", type=int, metavar="N", help="resize the shorter edge to N pixels first")
    size.add_argument("--max_side", type=int, metavar="N",
                      help="first shrink images whose longer edge exceeds N pixels")
    flags.add_argument("--side_by_side", action="store_true", help="also NAME_comparison.png: original, reconstruction")
    flags.add_argument("--save_latents", choices=("npz", "safetensors"),
                       help="also NAME_latent.*: `latent` C x h x w float32, `size` (height, width)")
    return flags


def find_images(path, output):
    """Image files of a path, sorted, without those that an earlier run wrote there when `output` is the same folder.

    Raises FileNotFoundError for a missing path and for a folder without images.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no image or folder at {path}")
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS)
    if not images:
        raise FileNotFoundError(f"no image in {path}: it needs files ending in {', '.join(sorted(EXTENSIONS))}")
    if path.resolve() == Path(output).resolve():
        own = {f"{name}_{kind}.png" for p in images for name in (p.stem, p.name) for kind in WRITTEN}
        images = [p for p in images if p.name not in own]
    return images


def fit(image, resize=None, max_side=None):
    """PIL image resized (bicubic) to a shorter edge of `resize`, or down to a longer edge of `max_side`."""
    edge = min(image.size) if resize else max(image.size)
    target = resize or min(max_side or edge, edge)
    if target == edge:
        return image
    return image.resize([max(1, round(side * target / edge)) for side in image.size], Image.Resampling.BICUBIC)


@torch.no_grad()
def reconstruct(model, image, device):
    """PIL image -> (original, reconstruction: 1 x 3 x H x W, 8-bit levels in [0, 1]; latent: C x h x w)."""
    images = to_tensor(image).unsqueeze(0).to(device).float() / 255  # 1 3 H W
    padded, (height, width) = pad_to_multiple(images, model.size_divisor)
    with full_precision(device):
        latent = model.encode(padded).latent
        reconstruction = model.decode(latent, padded.shape[-2:]).sample[..., :height, :width]
    return images, round_to_8_bits(reconstruction), latent[0]


def save_latent(latent, size, path, kind):
    """Write a latent and the (height, width) to decode it to, as `path.npz` or `path.safetensors`."""
    if kind == "npz":
        np.savez(f"{path}.npz", latent=latent.cpu().numpy(), size=np.array(size))
    else:
        from safetensors.torch import save_file

        save_file({"latent": latent.cpu().contiguous(), "size": torch.tensor(size)}, f"{path}.safetensors")


def check_sizes(args):
    for name in ("resize", "max_side"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give a number of pixels, at least 1")


def main(argv=None):
    args, config = parse(build_flags(), argv, resolve_env=False)
    check_sizes(args)
    files = find_images(args.image_path, args.output_dir)
    device = runtime.start(args.device).device
    model = runtime.load_model(args.checkpoint, config, device)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    stems, broken = Counter(file.stem for file in files), 0
    for file in files:
        try:
            image = fit(load_image(file), args.resize, args.max_side)
        except (ValueError, OSError) as error:
            print(f"error: {error}; skipped", file=sys.stderr)
            broken += 1
            continue
        original, reconstruction, latent = reconstruct(model, image, device)
        name = output / (file.stem if stems[file.stem] == 1 else file.name)  # a.jpg and a.png stay apart
        to_pil(reconstruction[0]).save(f"{name}_reconstruction.png")
        if args.side_by_side:
            image_grid([original, reconstruction], ["original", "reconstruction"]).save(f"{name}_comparison.png")
        if args.save_latents:
            save_latent(latent, image.size[::-1], f"{name}_latent", args.save_latents)
        quality = psnr(original, reconstruction).item()
        print(f"{file}: {image.width} x {image.height}, PSNR {quality:.2f} dB", flush=True)
    print(f"{len(files) - broken} of {len(files)} images reconstructed in {output}")
    return 1 if broken else 0


if __name__ == "__main__":
    run(main)
