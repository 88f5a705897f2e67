"""Raw data -> shards and dataset.json: `prepare_data.py photographs|imagefolder|captions --output DIR ...`."""
import argparse
import importlib

from muse.utils import cli

RECIPES = {
    "photographs": "cut-outs pasted on photographs, with caption, class and mask (the miniature's data)",
    "imagefolder": "class folders of images",
    "captions": "images with captions: a folder with .txt files, or a CSV, JSONL or parquet table",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="recipe", required=True)
    for name, text in RECIPES.items():
        recipe = importlib.import_module(f"muse.data.preparation.{name}")
        command = commands.add_parser(name, help=text, description=recipe.__doc__)
        recipe.add_arguments(command)
        command.set_defaults(prepare=recipe.prepare)
    args = parser.parse_args()
    args.prepare(args)


if __name__ == "__main__":
    cli.run(main)
