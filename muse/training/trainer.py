"""One loop and one step for all three stages; what differs between them is data (stages.py) and configuration."""
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm import tqdm

from muse.data.dataloader import build_train_loader
from muse.losses.muse_loss import MUSE_Loss
from muse.models.ema_model import EMAModel
from muse.models.muse_vit import MUSE_ViT
from muse.models.tensor_files import weight_files
from muse.training import checkpoint
from muse.training.cache import Targets
from muse.training.distributed import LossGraph, build_accelerator, distribute, local_gradients
from muse.training.optimizers import Learner
from muse.training.stages import STAGES, get_stage
from muse.training.tracking import Averages, Tracker, epoch_size, format_step, write_json
from muse.training.validation import Validation
from muse.utils import cli
from muse.utils.logger import setup_logger
from muse.utils.train_utils import StopSignal, Stopwatch, preserved_rng, rng_state, set_rng_state


class NonFiniteError(ValueError):
    """A loss or gradient norm is infinite or not a number; the weights are those before the step."""


class Trainer:
    """Trains one stage from a MuseConfig: `Trainer(config).run()`.

    Starts from the newest complete checkpoint in experiment.output_dir, else from the parent stage's EMA weights, else
    (stage 1) from pretrained backbones. ValueError or OSError in one sentence for what a user can mend.
    """

    def __init__(self, config):
        self.config, self.stage = config, get_stage(config)
        self.output_dir = Path(config.experiment.output_dir)
        self.accelerator = build_accelerator(config)
        self.log = setup_logger(self.accelerator.is_main_process)
        resumed = checkpoint.load_for_resume(config)
        self.parent = None if resumed else checkpoint.find_parent(config, self.stage)
        set_seed(config.training.seed)  # equal networks in every process
        self._build_model(resumed[0] if resumed else self.parent)
        self._build_learners()
        self.targets = Targets(config, self.stage, self.model, self.loss, self.accelerator)
        set_seed(config.training.seed, device_specific=True)  # what is drawn while training may differ between them
        self.loader = build_train_loader(
            config.dataset, batch_size=config.training.per_gpu_batch_size, seed=config.training.seed,
            rank=self.accelerator.process_index, world_size=self.accelerator.num_processes, fields=self.targets.fields)
        self.validation = Validation(config, self.model, self.targets.teacher, self.accelerator)
        self.step = 0
        if resumed:
            self._restore(*resumed)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.tracker = Tracker(self.accelerator, config, self.step)
        self.averages, self.stopwatch = Averages(), Stopwatch()
        self.epoch_size = epoch_size(config.dataset.params.train_shards)

    def _build_model(self, source):
        """The tokenizer with the weights of `source` (a checkpoint directory) or pretrained backbones, and the loss."""
        config, device = self.config, self.accelerator.device
        if source is None:
            model = MUSE_ViT.from_config(config.model, self.stage.number)
        else:
            model = MUSE_ViT(config.model, self.stage.number)
            model.load_released(weight_files(source), source)
        model.freeze(self.stage.frozen)
        self.model = model.to(device).train()
        self.loss = MUSE_Loss(config.losses, config.training.max_train_steps).to(device)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        self.log.info("stage %d (%s) from %s: %.2f M of %.2f M parameters train", self.stage.number, self.stage.name,
                      source or "pretrained backbones", sum(n for n, trains in sizes if trains) / 1e6,
                      sum(n for n, _ in sizes) / 1e6)

    def _build_learners(self):
        """Optimizers and schedules, EMA, loss scaling, and the modules wrapped for precision and processes."""
        config, params = self.config, self.config.optimizer.params
        steps = config.training.max_train_steps
        graph = LossGraph(self.model, self.loss)
        self.learner = Learner.build(graph.trained(), config, params.learning_rate, steps,
                                     params.encoder_learning_rate_factor)
        self.ema = EMAModel(self.model, config.training.ema_decay) if config.training.use_ema else None
        self.graph = distribute(self.accelerator, graph, find_unused=True)
        self.critic, self.critic_learner = None, None
        if self.loss.discriminator is not None:
            self.critic_learner = Learner.build(
                self.loss.discriminator.named_parameters(), config, params.discriminator_learning_rate,
                steps - config.losses.discriminator_start)
            self.critic = distribute(self.accelerator, self.loss.discriminator)
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type,
                                           enabled=config.training.mixed_precision == "fp16")

    def run(self):
        """Train to max_train_steps, then evaluate. SystemExit(128 + signal) after a checkpoint when asked to stop."""
        experiment, last = self.config.experiment, self.config.training.max_train_steps
        on_terminal = self.accelerator.is_main_process and sys.stderr.isatty()
        bar = tqdm(total=last, initial=self.step, disable=not on_terminal, unit="step", dynamic_ncols=True)
        batches = iter(self.loader)
        with StopSignal() as stop, bar:
            if self.step == 0 and experiment.generate_every:
                self._examine(draw=True)
            while self.step < last:
                stopping = self.train_step(batches, stop)
                bar.update()
                done = self.step == last
                if self._due(experiment.log_every) or done:
                    self._report(bar)
                if self._due(experiment.save_every) or done or stopping:
                    self.save(checkpoint.name_of(self.step))
                if stopping and not done:
                    self.log.info("stopped by signal %d after step %d: start again to continue", stopping, self.step)
                    raise SystemExit(128 + stopping)
                if not done:
                    self._examine(self._due(experiment.eval_every), self._due(experiment.generate_every))
        self._finish()

    def train_step(self, batches, stop=None):
        """One optimizer step: accumulate, check, clip, update. Returns the signal that asks to stop after it, or 0.

        Terms are averaged over the batches of the step and over processes; gradients cross processes only with the
        last one. A loss or norm that is not finite ends the run here, before any weight has changed.
        """
        accumulation = self.config.training.gradient_accumulation_steps
        learners = [self.learner]
        if self.loss.adversarial_at(self.step):
            learners.append(self.critic_learner)
        total, keys, reports = 0.0, [], []
        for micro in range(1, accumulation + 1):
            batch = self.stopwatch.fetch(batches, self.accelerator.num_processes)
            inputs = self.targets(batch)
            keys += batch["key"]
            with local_gradients(self.accelerator, (self.graph, self.critic), micro < accumulation):
                loss, report, reconstruction = self.graph(step=self.step, **inputs)
                self.scaler.scale(loss / accumulation).backward()
                total = total + loss.detach()
                if len(learners) > 1:
                    loss, more = self.loss.discriminator_loss(inputs["images"], reconstruction, self.critic)
                    self.scaler.scale(loss / accumulation).backward()
                    total, report = total + loss.detach(), {**report, **more}
            reports.append(report)
        norms = [learner.clip(self.scaler, self.config.training.max_grad_norm) for learner in learners]
        stopping = self._check(total, norms, reports, keys, stop)
        for learner in learners:
            learner.update(self.scaler)
        self.scaler.update()
        self.model.clamp_logit_scale()
        if self.ema:
            self.ema.step()
        self.step += 1
        for report in reports:
            self.averages.add(report)
        self.averages.add(dict(zip(("grad_norm", "d_grad_norm"), norms)), finite_only=True)  # fp16 skips the others
        return stopping

    def _check(self, total, norms, reports, keys, stop):
        """Stop on a non-finite number, in every process alike; returns the signal received by any process, or 0.

        The host waits for the device once an optimizer step: whether to update must be known before updating. Under
        fp16 an infinite norm is the loss scale being too high: the scaler skips that step and halves the scale, which
        is read as well, since a scale below 1 does not recover.
        """
        checked = [total] if self.scaler.is_enabled() else [total, *norms]
        finite = torch.stack([value.float() for value in checked]).isfinite().all()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            finite = torch.zeros_like(finite)
        flags = torch.stack([(~finite).float(), torch.full_like(total, stop.number if stop else 0).float()])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.gather(flags[None]).amax(dim=0)
        broken, stopping = flags.tolist()
        if broken:
            self._stop_before_update(norms, reports, keys)
        return int(stopping)

    def _stop_before_update(self, norms, reports, keys):
        self.averages = Averages()
        for report in reports:
            self.averages.add({**report, "grad_norm": norms[0]})
        terms = {name: str(value) for name, value in self.averages.read(self.accelerator).items()}
        name = f"nonfinite-{self.step + 1:06d}"
        self.save(name, terms=terms, samples=gather_object(keys))
        listed = ", ".join(f"{term} {value}" for term, value in terms.items())
        raise NonFiniteError(f"step {self.step + 1} is not finite ({listed}): stopped before the update, weights and "
                             f"sample names are in {self.output_dir / name}; lower the learning rate or look at them")

    def save(self, name, **metadata):
        """Write `<output_dir>/<name>` from the main process; OSError in all of them where that fails."""
        processes = gather_object([{"rng": rng_state(), "loader": self.loader.state_dict()}])
        error = [None]
        if self.accelerator.is_main_process:
            metadata = {"stage": self.stage.number, "step": self.step, "parent": self.parent and str(self.parent),
                        "variant": self.config.model.variant, "ema": self.ema is not None, **metadata}
            state = {**self._state(), "processes": processes}  # raw weights: before the averages take their place
            try:
                with self._ema_weights():
                    checkpoint.save(self.output_dir / name, self.model, self.config, metadata, state,
                                    self.config.experiment.keep_checkpoints)
            except OSError as failure:
                error = [str(failure)]
        if broadcast_object_list(error)[0]:
            raise OSError(error[0])
        self.log.info("saved %s", self.output_dir / name)
        self.stopwatch.restart()

    def _ema_weights(self):
        return self.ema.applied() if self.ema else nullcontext()

    def _state(self):
        """What resuming needs beside the model file, the same in every process."""
        loss = {name: t for name, t in self.loss.state_dict().items() if not name.startswith("perceptual.")}
        weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {"step": self.step, "parent": self.parent and str(self.parent), "weights": weights, "loss": loss,
                "scaler": self.scaler.state_dict(),
                **{name: part.state_dict() for name, part in self._continued().items()}}

    def _continued(self):
        parts = {"learner": self.learner, "critic_learner": self.critic_learner, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}

    @torch.no_grad()
    def _restore(self, path, state):
        """Continue where `path` stopped, bit for bit on the same device and number of processes."""
        own = self._state()
        changed = own.keys() ^ (state.keys() - {"processes"})
        changed |= own["weights"].keys() ^ state["weights"].keys() | own["loss"].keys() ^ state["loss"].keys()
        if changed:
            raise ValueError(f"{path} was written with other settings ({', '.join(sorted(changed)[:3])}): resume with "
                             f"the same use_ema, learn_logvar and discriminator, or in another experiment.output_dir")
        parameters = dict(self.model.named_parameters())
        for name, weight in state["weights"].items():
            parameters[name].copy_(weight)
        self.loss.load_state_dict({**self.loss.state_dict(), **state["loss"]})
        self.scaler.load_state_dict(state["scaler"])
        for name, part in self._continued().items():
            part.load_state_dict(state[name])
        self.step, self.parent = state["step"], state["parent"]
        processes, mine = state["processes"], self.accelerator.process_index
        if len(processes) == self.accelerator.num_processes:
            set_rng_state(processes[mine]["rng"])
            self.loader.load_state_dict(processes[mine]["loader"])
        else:
            self.loader.load_state_dict(processes[0]["loader"])  # starts a new order, with a warning
        self.log.info("continuing at step %d from %s", self.step, path)

    def _due(self, every):
        return bool(every) and self.step % every == 0

    def _report(self, bar):
        """One reading of the device's averages: to the trackers, and to the terminal or the log."""
        training = self.config.training
        values = {**self.averages.read(self.accelerator), **self.learner.last_rates, **self.stopwatch.rates()}
        if self.critic_learner and self.critic_learner.last_rates:
            values["d_lr"] = self.critic_learner.last_rates["lr"]
        images = self.step * training.per_gpu_batch_size * training.gradient_accumulation_steps
        values["images_seen"] = images * self.accelerator.num_processes
        if self.epoch_size:
            values["epoch"] = values["images_seen"] / self.epoch_size
        self.tracker.log(self.step, values)
        bar.set_postfix(loss=f"{values['total']:.4f}", refresh=False)
        if bar.disable:
            self.log.info(format_step(self.step, training.max_train_steps, values))
        self.stopwatch.restart()

    def _examine(self, evaluate=False, draw=False):
        """Evaluate and draw with the EMA weights; training does not notice."""
        if not (evaluate or draw):
            return
        with preserved_rng(), self._ema_weights():
            if draw:
                self.validation.draw(self.step)
            results = self.validation.evaluate(self.step) if evaluate else {}
        if results:
            self.tracker.log(self.step, {f"eval/{name}": value for name, value in results.items()})
            self.log.info("evaluation at step %d: %s", self.step,
                          ", ".join(f"{name} {value:.4g}" for name, value in results.items()))
            saved = self.output_dir / checkpoint.name_of(self.step)
            if self.accelerator.is_main_process and saved.is_dir():
                write_json(saved / "evaluation.json", {"step": self.step, **results})
        self.stopwatch.restart()

    def _finish(self):
        last = self.output_dir / checkpoint.name_of(self.step)
        if not (last / "evaluation.json").is_file():
            self._examine(evaluate=True, draw=self.config.experiment.generate_every > 0)
        self.log.info("done: %s", last)
        self.tracker.close()


def main(stage, argv=None):
    """Command line of scripts/train_stage{1,2,3}.py: `--config FILE` or `config=FILE`, and any `key=value`."""
    _, config = cli.parse(cli.parser(f"Train stage {stage} ({STAGES[stage].name})."), argv)
    if config.experiment.stage != stage:
        raise ValueError(f"this script trains stage {stage}, the config is of stage {config.experiment.stage}: use "
                         f"scripts/train_stage{config.experiment.stage}.py")
    trainer = Trainer(config)
    trainer.run()
    trainer.accelerator.end_training()
