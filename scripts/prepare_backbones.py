"""Fetch and convert the miniature's backbones.

Usage: python scripts/prepare_backbones.py tiny --output DIR [--cache DIR]
Writes DIR/tiny/{encoder,teacher,text_encoder}, the loss networks' weights, and sources.json (versions, checksums,
licences).
"""
import argparse

from muse.models.tensor_files import quiet_loading
from muse.models.tiny_backbones import prepare_tiny
from muse.utils.cli import run


def main():
    parser = argparse.ArgumentParser(description="Fetch and convert the backbones of a configuration.")
    parser.add_argument("recipe", choices=["tiny"], help="tiny: everything that configs/muse_tiny needs")
    parser.add_argument("--output", required=True, help="directory that ${CHECKPOINT_DIR} will name")
    parser.add_argument("--cache", help="directory of downloads (default: MUSE_CACHE or ~/.cache/muse/downloads)")
    args = parser.parse_args()
    quiet_loading()
    for path, size, written in prepare_tiny(args.output, args.cache):
        print(f"{'wrote' if written else 'kept '} {path} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
