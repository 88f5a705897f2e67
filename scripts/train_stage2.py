"""Train stage 2, Semantic Injection: `python scripts/train_stage2.py --config FILE [key=value ...]`."""
from muse.training.trainer import main
from muse.utils.cli import run

if __name__ == "__main__":
    run(lambda: main(2))
