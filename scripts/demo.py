"""The whole of MUSE in miniature: prepare, train three stages, measure before and after each; one table, one picture.

    python scripts/demo.py [--quick] [--seed N | --seeds N] [--output DIR] [key=value for every stage ...]

--seeds N repeats the run with N seeds and adds a table of means and spreads. Photographs and backbones already in
DATA_DIR and CHECKPOINT_DIR (default: data/ and checkpoints/ here) are taken as they are. Finished steps are kept in the
output directory and skipped when started again; an interrupted stage resumes.
"""
import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from muse.analysis.demo_report import picture, spread_table, table
from muse.training.tracking import write_text
from muse.utils.cli import run

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = ("start", "stage1", "stage2", "stage3")
FEW = ("--per-cutout", "1", "--validation-per-cutout", "2")  # photographs of a quick run
PROBED = 750  # training photographs that the linear probe learns from, at most
EXAMINED = ["evaluation.max_images=32", "evaluation.frechet=none"]  # while training; measured fully in between
QUICK = ["training.per_gpu_batch_size=16", "experiment.generate_every=0"]
QUICK_STEPS = {1: 40, 2: 30, 3: 8}
METRICS = ("topology_kl", "topology_kl_uniform", "psnr", "psnr_mean_colour", "ssim", "st_lpips",
           "fd_efficientnet_lite0", "zero_shot_top1", "linear_probe_top1")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and images: minutes, and worse figures")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs with seed, seed + 1, ...")
    parser.add_argument("--output", type=Path, help="default: outputs/demo, or outputs/demo_quick")
    args, overrides = parser.parse_known_args(argv)
    unknown = [item for item in overrides if item.startswith("-") or "=" not in item]
    if unknown:
        parser.error(f"unrecognized argument {unknown[0]!r}; settings are written key=value")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1")
    output = (args.output or ROOT / "outputs" / ("demo_quick" if args.quick else "demo")).resolve()
    if args.seeds == 1:
        one_run(output, args.quick, args.seed, overrides)
        return
    runs = {seed: one_run(output / f"seed-{seed}", args.quick, seed, overrides)
            for seed in range(args.seed, args.seed + args.seeds)}
    text = spread_table(list(runs.values()))
    write_text(output / "spread.json", json.dumps(runs, indent=1) + "\n")
    write_text(output / "spread.md", text)
    print(f"\n{text}\n{output}/spread.json, spread.md")


def one_run(output, quick, seed, overrides):
    """The demo with one seed: prepared, trained, measured, summarised. Returns the summary."""
    demo = Demo(output, quick, [f"training.seed={seed}", *overrides])
    demo.prepare()
    for moment in MOMENTS:
        demo.reach(moment)
    return demo.summarise()


class Demo:
    """One run of the demo, resumable: what is done is written under `output`, with the seconds it took."""

    def __init__(self, output, quick, overrides):
        self.output, self.quick, self.overrides = output, quick, overrides
        os.environ.setdefault("CHECKPOINT_DIR", str(ROOT / "checkpoints"))
        os.environ.setdefault("DATA_DIR", str(ROOT / "data" / "quick" if quick else ROOT / "data"))
        self.bench = None
        self.results = output / "moments"
        self.results.mkdir(parents=True, exist_ok=True)
        self.seconds = self._read("seconds.json") or {}
        settings = {"quick": quick, "overrides": overrides}
        if self._read("settings.json", settings) != settings:
            raise ValueError(f"{output} holds a demo with other settings; give another --output, or remove it")
        self._write("settings.json", settings)

    def _read(self, name, default=None):
        path = self.output / name
        return json.loads(path.read_text()) if path.is_file() else default

    def _write(self, name, value):
        write_text(self.output / name, json.dumps(value, indent=1) + "\n")

    def _timed(self, name, action):
        """Run `action`, add its seconds to what earlier, interrupted runs spent on `name`."""
        started = time.monotonic()
        try:
            return action()
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - started, 1)
            self._write("seconds.json", self.seconds)
            usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            self._write("peak.json", max(*usage, self._read("peak.json", 0)))  # KiB, one process

    def config(self, stage):
        """The stage's configuration as its training command reads it."""
        from muse.config import load_config
        return load_config(ROOT / f"configs/muse_tiny/stage{stage}.yaml", self.settings(stage))

    def settings(self, stage):
        """Overrides of one stage: its place under `output`, its parent, the run's own."""
        settings = [f"experiment.output_dir={self.output / f'stage{stage}'}"]
        if stage > 1:
            settings.append(f"experiment.init_checkpoint={self.output / f'stage{stage - 1}'}")
        if self.quick:
            settings += [*QUICK, f"training.max_train_steps={QUICK_STEPS[stage]}"]
        return settings + self.overrides

    def prepare(self):
        """Photographs and backbones, where they are not prepared yet."""
        data, backbones = Path(os.environ["DATA_DIR"]), Path(os.environ["CHECKPOINT_DIR"])
        if not (data / "photographs" / "dataset.json").is_file():
            self._timed("photographs", lambda: command("scripts/prepare_data.py", "photographs", "--output",
                                                       data / "photographs", *(FEW if self.quick else ())))
        if not (backbones / "tiny" / "sources.json").is_file():
            self._timed("backbones", lambda: command("scripts/prepare_backbones.py", "tiny", "--output", backbones))

    def reach(self, moment):
        """Train up to a moment and measure there, unless that is done."""
        if moment != "start":
            stage = int(moment[-1])
            if not (self.results / f"{moment}.json").is_file():
                say(f"stage {stage}: training")
                self._timed(f"train {moment}", lambda: command(f"tools/train_stage{stage}.sh", "muse_tiny", *EXAMINED,
                                                               *self.settings(stage)))
        if not (self.results / f"{moment}.json").is_file():
            say(f"{moment}: measuring")
            self._timed(f"measure {moment}", lambda: self.measure(moment))

    def measure(self, moment):
        """Measure the model of a moment; results and pictures go to `moments/`."""
        self.bench = self.bench or build_bench(self.config(1))
        results, pictures, received = self.bench.measure(self.model(moment))
        shown = torch.linspace(0, len(pictures) - 1, 8).round().long()
        torch.save({"images": self.bench.test.images[shown].float() / 255, "reconstructions": pictures[shown].clone(),
                    "received": received[shown].clone(), "teacher": self.bench.maps[shown].clone()},
                   self.results / f"{moment}.pt")
        self._write(f"moments/{moment}.json", results)
        say(f"{moment}: " + ", ".join(f"{name} {results[name]:.4g}" for name in METRICS))

    def model(self, moment):
        """The untrained model, or the EMA weights of a finished stage."""
        from muse.evaluation.runtime import find_checkpoint
        from muse.models import MUSE_ViT
        if moment == "start":
            torch.manual_seed(self.config(1).training.seed)
            return MUSE_ViT.from_config(self.config(1).model, 1).eval()
        return MUSE_ViT.from_pretrained(find_checkpoint(self.output / moment))

    def summarise(self):
        """summary.json, table.md and picture.png from the moments."""
        results = {moment: self._read(f"moments/{moment}.json") for moment in MOMENTS}
        steps = {stage: self.config(stage).training for stage in (1, 2, 3)}
        summary = {moment: {name: results[moment][name] for name in METRICS} for moment in MOMENTS}
        summary.update(
            majority_share=results["start"]["majority_share"],
            linear_probe_encoder_top1=results["start"]["linear_probe_encoder_top1"],
            seconds=round(sum(self.seconds.values()), 1), peak_memory_mb=round(self._read("peak.json") / 1024),
            images_seen=sum(t.max_train_steps * t.per_gpu_batch_size * t.gradient_accumulation_steps
                            for t in steps.values()),
            seconds_by_step=self.seconds, quick=self.quick, settings=self.overrides)
        self._write("summary.json", summary)
        shown = {moment: torch.load(self.results / f"{moment}.pt", weights_only=True) for moment in MOMENTS}
        picture(shown).save(self.output / "picture.png")
        text = table(summary)
        write_text(self.output / "table.md", text)
        print(f"\n{text}\n{self.output}/summary.json, table.md, picture.png")
        return summary


def build_bench(config):
    """The demo's images, teacher and class embeddings."""
    from muse.data.dataloader import build_eval_loader
    from muse.data.index import read_index
    from muse.evaluation.bench import Bench, Labelled
    from muse.evaluation.zero_shot import embed_classes, get_templates
    from muse.models.text import TextEncoder
    from muse.models.topology import TopologyTeacher
    params = config.dataset.params

    def read(shards, most):
        return Labelled.from_loader(build_eval_loader(shards, config.dataset.preprocessing, batch_size=64,
                                                      fields=("image", "label"), max_images=most,
                                                      max_skipped_fraction=params.max_skipped_fraction))

    classes = read_index(params.train_shards)["classes"]
    embeddings = embed_classes(TextEncoder.from_config(config.model.text_encoder), classes, get_templates("simple"))
    return Bench(read(params.train_shards, PROBED), read(params.eval_shards, None),
                 TopologyTeacher.from_config(config.model.teacher), embeddings, classes, config.evaluation)


def command(script, *arguments):
    """Run one of the project's own commands as a user would; its failure ends the demo."""
    program = ["bash"] if script.endswith(".sh") else [sys.executable]
    line = [*program, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.Popen(line, env=environment, start_new_session=True)  # Ctrl-C reaches it through this process
    try:
        status = process.wait()
    except KeyboardInterrupt:
        stop(process)
        raise
    if status:
        raise ValueError(f"{script} failed (exit status {status}); mend what it names and start again")


def stop(process, patience=60):
    """Ask a command and all that it started to end, and wait until they have: training saves its last step first."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        pass  # nothing of it is left


def say(text):
    print(text, flush=True)


if __name__ == "__main__":
    run(main)
