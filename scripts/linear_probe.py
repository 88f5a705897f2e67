"""Linear probe of a checkpoint: trained on the training shards' labels, tested on the evaluation shards.

    python scripts/linear_probe.py --config configs/muse_tiny/stage3.yaml --checkpoint outputs/muse_tiny/stage3
"""
import time

from muse.evaluation import runtime
from muse.evaluation.linear_probe import evaluate_linear_probe
from muse.utils.cli import parse, parser, run


def main(argv=None):
    flags = runtime.add_flags(parser("Linear probe of the pooled semantic feature, and of the vision encoder's own."))
    flags.add_argument("--output", metavar="DIR", help="default: evaluation/<checkpoint> beside the checkpoint")
    flags.add_argument("--epochs", type=int, default=100)
    flags.add_argument("--learning_rate", type=float, default=0.1)
    flags.add_argument("--batch_size", type=int, default=1024, help="images a step of the probe")
    flags.add_argument("--seed", type=int, default=0)
    args, config = parse(flags, argv, resolve_env=False)
    here, started = runtime.start(args.device), time.monotonic()
    model = runtime.load_model(args.checkpoint, config, here.device, encoder_only=True)
    train, test = (runtime.eval_loader(config, here, ("image", "label"), split) for split in ("train", "eval"))
    options = {name: getattr(args, name) for name in ("epochs", "learning_rate", "batch_size", "seed")}
    results = evaluate_linear_probe(model, train, test, here.device, **options)
    if here.is_main:
        results |= options | runtime.provenance(args, model, started)
        runtime.write_results(results, args.output or runtime.default_output(args.checkpoint), "linear_probe")


if __name__ == "__main__":
    run(main)
