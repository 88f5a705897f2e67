"""Run by test_distributed.py, alone or by torchrun: stages 1 and 3 on the same global batches."""
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tiny_training import FakeText, tiny_config

import muse.training.cache
import muse.training.trainer as trainer_module


class SharedBatches:
    """Endless global batches of 8; a process sees its own rows."""

    def __init__(self, config, *, batch_size, seed, rank, world_size, fields):
        self.rows, self.world_size = range(rank * batch_size, (rank + 1) * batch_size), world_size
        self.drawn = 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.drawn)
            images = torch.randint(0, 256, (8, 3, 56, 56), generator=generator, dtype=torch.uint8)
            self.drawn += 1
            yield {"key": [f"{self.drawn}/{row}" for row in self.rows], "image": images[self.rows.start:self.rows.stop],
                   "caption": [f"picture {(self.drawn + row) % 5}" for row in self.rows]}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def main(root, steps):
    torch.set_num_threads(1)
    muse.training.cache.TextEncoder = FakeText
    trainer_module.build_train_loader = SharedBatches
    world_size = PartialState(cpu=True).num_processes
    for stage in (1, 3):
        output_dir = f"{root}/{world_size}-stage{stage}"
        parent = {} if stage == 1 else dict(init_checkpoint=f"{root}/{world_size}-stage1", allow_foreign_parent=True)
        trainer = trainer_module.Trainer(tiny_config(
            Path(root), stage, experiment=dict(parent, output_dir=output_dir),
            training=dict(per_gpu_batch_size=8 // world_size, max_train_steps=steps),
            losses=dict(discriminator_weight=0.1 if stage == 3 else 0.0, discriminator_start=1)))
        trainer.run()
        sums = {name: value.double().sum().item() for name, value in trainer.ema.shadow.items()}
        Path(f"{output_dir}-rank{trainer.accelerator.process_index}.json").write_text(json.dumps(sums))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
