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

    def _loader(self):
        settings, params, accelerator = self.config.evaluation, self.config.dataset.params, self.accelerator
        return build_eval_loader(
            self.shards, self.config.dataset.preprocessing, batch_size=settings.batch_size,
            num_workers=params.num_workers, part=(accelerator.process_index, accelerator.num_processes),
            max_images=settings.max_images, max_skipped_fraction=params.max_skipped_fraction)

    def evaluate(self, step):
        """Dict of float over all processes, written to `<output_dir>/evaluation/<step>.json`; empty without shards."""
        if not self.shards:
            return {}
        settings, device = self.config.evaluation, self.accelerator.device
        results = evaluate_reconstruction(self.model, self._loader(), settings, device, mean_colour=True)
        if self.teacher is not None:
            results.update(evaluate_topology(self.model, self.teacher, self._loader(), device))
        if self.accelerator.is_main_process:
            path = self.output_dir / "evaluation" / f"{step:06d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"step": step, **results})
        return results

    @torch.no_grad()
    def draw(self, step):
        """Originals over reconstructions, `<output_dir>/samples/<step>.png`, from the main process: the first images
        that can be read; nothing is drawn where there are none."""
        count = self.config.training.num_generated_images
        if not (self.shards and count and self.accelerator.is_main_process):
            return
        if self.images is None:
            loader = build_eval_loader(self.shards, self.config.dataset.preprocessing, batch_size=count,
                                       max_skipped_fraction=1.0)  # whether the data are good, `evaluate` judges
            batch = next(iter(loader), None)
            if batch is None:
                return
            self.images = batch["image"].to(self.accelerator.device).float() / 255  # B 3 H W
        with evaluating(self.model), self.accelerator.autocast():
            reconstruction = self.model(self.images).reconstruction
        path = self.output_dir / "samples" / f"{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_grid([self.images, reconstruction.float()], row_labels=("original", "reconstruction")).save(path)
