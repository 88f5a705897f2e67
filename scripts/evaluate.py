"""Reconstruction metrics of a checkpoint on the evaluation shards.

    python scripts/evaluate.py --config configs/muse_tiny/stage3.yaml --checkpoint outputs/muse_tiny/stage3
"""
import time

import torch

from muse.evaluation import runtime
from muse.evaluation.evaluator import evaluate_reconstruction
from muse.utils.cli import parse, parser, run
from muse.utils.viz_utils import EvenlySpaced, image_grid


def main(argv=None):
    flags = runtime.add_flags(parser("Frechet distance, PSNR, SSIM and perceptual distance of reconstructions."))
    flags.add_argument("--output", metavar="DIR", help="default: evaluation/<checkpoint> beside the checkpoint")
    flags.add_argument("--grid", type=int, default=8, metavar="N", help="images in reconstructions.png; 0: none")
    flags.add_argument("--mean_colour", action="store_true", help="also the PSNR of each image's own mean colour")
    flags.add_argument("--topology", action="store_true", help="also the topology KL against model.teacher")
    args, config = parse(flags, argv, resolve_env=False)
    here, started = runtime.start(args.device), time.monotonic()
    model = runtime.load_model(args.checkpoint, config, here.device)
    shown = EvenlySpaced(args.grid)

    def observe(images, reconstruction):
        for pair in zip(images, reconstruction):
            shown.add(pair)

    loader = runtime.eval_loader(config, here)
    results = evaluate_reconstruction(model, loader, config.evaluation, here.device, mean_colour=args.mean_colour,
                                      observe=observe if args.grid else None)
    if args.topology:
        results.update(topology(model, config, here))
    if not here.is_main:
        return
    output = args.output or runtime.default_output(args.checkpoint)
    runtime.write_results(results | runtime.provenance(args, model, started), output, "reconstruction")
    if args.grid:
        rows = [torch.stack(images) for images in zip(*shown.items())]
        image_grid(rows, ["original", "reconstruction"]).save(f"{output}/reconstructions.png")


def topology(model, config, here):
    from muse.evaluation.topology import evaluate_topology
    from muse.models.topology import TopologyTeacher

    teacher = TopologyTeacher.from_config(config.model.teacher).to(here.device)
    return evaluate_topology(model, teacher, runtime.eval_loader(config, here), here.device)


if __name__ == "__main__":
    run(main)
