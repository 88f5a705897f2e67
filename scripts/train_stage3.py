"""Train stage 3, Synergistic Tuning: `python scripts/train_stage3.py --config FILE [key=value ...]`."""
from muse.training.trainer import main
from muse.utils.cli import run

if __name__ == "__main__":
    run(lambda: main(3))
