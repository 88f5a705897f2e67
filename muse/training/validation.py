"""What is looked at while training: metrics on the evaluation shards, and a picture of the same few images."""
from pathlib import Path

import torch

from muse.data.dataloader import build_eval_loader
from muse.evaluation.evaluator import evaluate_reconstruction, evaluating
from muse.evaluation.topology import evaluate_topology
from muse.training.tracking import write_json
from muse.utils.viz_utils import image_grid


class Validation:
    """Evaluates and draws with the weights that `model` holds at the time; without eval_shards it does nothing."""

    def __init__(self, config, model, teacher, accelerator):
        self.config, self.model, self.teacher, self.accelerator = config, model, teacher, accelerator
        self.shards = config.dataset.params.eval_shards
        self.output_dir = Path(config.experiment.output_dir)
        self.images = None

    def _loader(self, batch_size, max_images, shared=True):
        params, accelerator = self.config.dataset.params, self.accelerator
        return build_eval_loader(
            self.shards, self.config.dataset.preprocessing, batch_size=batch_size, num_workers=params.num_workers,
            rank=accelerator.process_index if shared else 0, world_size=accelerator.num_processes if shared else 1,
            max_images=max_images)

    def evaluate(self, step):
        """Dict of float over all processes, written to `<output_dir>/evaluation/<step>.json`; empty without shards."""
        if not self.shards:
            return {}
        settings, device = self.config.evaluation, self.accelerator.device
        loader = self._loader(settings.batch_size, settings.max_images)
        results = evaluate_reconstruction(self.model, loader, settings, device, mean_colour=True)
        if self.teacher is not None:
            loader = self._loader(settings.batch_size, settings.max_images)
            results.update(evaluate_topology(self.model, self.teacher, loader, device))
        if self.accelerator.is_main_process:
            path = self.output_dir / "evaluation" / f"{step:06d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"step": step, **results})
        return results

    @torch.no_grad()
    def draw(self, step):
        """Originals over reconstructions, `<output_dir>/samples/<step>.png`, from the main process."""
        count = self.config.training.num_generated_images
        if not (self.shards and count and self.accelerator.is_main_process):
            return
        if self.images is None:
            batch = next(iter(self._loader(count, count, shared=False)))
            self.images = batch["image"].to(self.accelerator.device).float() / 255  # B 3 H W
        with evaluating(self.model), self.accelerator.autocast():
            reconstruction = self.model(self.images).reconstruction
        path = self.output_dir / "samples" / f"{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_grid([self.images, reconstruction.float()], row_labels=("original", "reconstruction")).save(path)
