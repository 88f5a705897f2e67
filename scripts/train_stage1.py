"""Train stage 1, Topology Warmup: `python scripts/train_stage1.py --config FILE [key=value ...]`."""
from muse.training.trainer import main
from muse.utils.cli import run

if __name__ == "__main__":
    run(lambda: main(1))
