"""Zero-shot classification of a checkpoint on labelled evaluation shards.

    python scripts/zero_shot.py --config configs/muse_1b/stage3.yaml --checkpoint PATH --classes imagenet
"""
import time

from muse.data.index import read_index
from muse.evaluation import runtime
from muse.evaluation.zero_shot import evaluate_zero_shot, get_class_names, get_templates
from muse.models.text import TextEncoder
from muse.utils.cli import parse, parser, run


def main(argv=None):
    flags = runtime.add_flags(parser("Zero-shot accuracy of the semantic feature against embedded class names."))
    flags.add_argument("--output", metavar="DIR", help="default: evaluation/<checkpoint> beside the checkpoint")
    flags.add_argument("--classes", metavar="FILE",
                       help="text file, one name a line in label order, or imagenet; default: the shards' dataset.json")
    flags.add_argument("--templates", default="openai", metavar="NAME",
                       help="openai (80 prompts), simple, or a text file with one template a line; default: openai")
    args, config = parse(flags, argv, resolve_env=False)
    here, started = runtime.start(args.device), time.monotonic()
    loader = runtime.eval_loader(config, here, ("image", "label"))  # first: it tells best what is wrong with the shards
    names = get_class_names(args.classes, read_index(config.dataset.params.eval_shards))
    templates = get_templates(args.templates)
    model = runtime.load_model(args.checkpoint, config, here.device, encoder_only=True)
    text_encoder = TextEncoder.from_config(config.model.text_encoder).to(here.device)
    results = evaluate_zero_shot(model, text_encoder, loader, names, templates, here.device)
    if here.is_main:
        results |= {"classes": len(names), "templates": args.templates} | runtime.provenance(args, model, started)
        runtime.write_results(results, args.output or runtime.default_output(args.checkpoint), "zero_shot")


if __name__ == "__main__":
    run(main)
