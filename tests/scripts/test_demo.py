"""The demo on thin random networks in the miniature's own file formats: what it writes, skips, resumes and refuses."""
import argparse
import contextlib
import importlib.util
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = ("start", "stage1", "stage2", "stage3")
METRICS = ("topology_kl", "topology_kl_uniform", "psnr", "psnr_mean_colour", "ssim", "st_lpips", "fd_efficientnet_lite0",
           "zero_shot_top1", "linear_probe_top1")
WORDS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
STEPS, BATCH = 5, 4
SETTINGS = [
    f"training.max_train_steps={STEPS}", f"training.per_gpu_batch_size={BATCH}", "lr_scheduler.params.warmup_steps=0",
    "experiment.generate_every=100",
    "model.muse_layers=2", "model.width=32", "model.heads=2", "model.semantic_dim=16", "model.latent_dim=8",
    "model.decoder.config.latent_channels=8", "model.decoder.config.attention_head_dim=8",
    "model.decoder.config.decoder_block_out_channels=[8,8,8,8,16]", "training.num_generated_images=2"]


def noise(size, rng):
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)


def prepare_photographs(folder):
    """Shards of the real recipe from generated cut-outs and backgrounds: 32 training and 12 validation pictures."""
    from muse.data.preparation import photographs
    rng = np.random.default_rng(0)
    for label in ("sea_animals", "tools"):
        (folder / "cutouts" / label).mkdir(parents=True)
        for word in WORDS:
            image = noise(60, rng).convert("RGBA")
            image.putalpha(Image.fromarray(np.pad(np.full((50, 50), 255, np.uint8), 5)))
            image.save(folder / "cutouts" / label / f"{word}.png")
            (folder / "cutouts" / label / f"{word}.txt").write_text(f"A {word} of {label}.")
    (folder / "backgrounds").mkdir()
    for word in WORDS:
        noise(120, rng).save(folder / "backgrounds" / f"{word}.png")
    parser = argparse.ArgumentParser()
    photographs.add_arguments(parser)
    photographs.prepare(parser.parse_args([
        "--output", f"{folder}/photographs", "--cutouts", f"{folder}/cutouts", "--backgrounds", f"{folder}/backgrounds",
        "--per-cutout", "2", "--validation-per-cutout", "3", "--workers", "1"]))


def prepare_backbones(folder):
    """Thin random networks under the names and in the formats of scripts/prepare_backbones.py tiny."""
    import timm
    from transformers import BertConfig, BertModel, BertTokenizerFast, Dinov2Config, Dinov2Model
    from transformers import InternVLVisionConfig, InternVLVisionModel

    from muse.models.tiny_backbones import internvit_weights
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=12, num_attention_heads=2, patch_size=14, image_size=112)
    teacher = Dinov2Model(Dinov2Config(**shape, mlp_ratio=2, use_mask_token=False, initializer_range=0.3))
    teacher.save_pretrained(folder / "teacher")
    encoder = InternVLVisionModel(InternVLVisionConfig(**shape, intermediate_size=64, attention_bias=True,
                                                       layer_norm_eps=1e-6))
    encoder.load_state_dict(internvit_weights(teacher.state_dict()))
    encoder.save_pretrained(folder / "encoder")
    text = folder / "text_encoder"
    BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         max_position_embeddings=16)).save_pretrained(text)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "of", "the", "sea", "animals", "tools", *WORDS]
    (text / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(text / "vocab.txt")).save_pretrained(text)
    layers = {"1.0": (64, 3, 11), "2.5": (192, 64, 5), "3.9": (384, 192, 3), "4.11": (256, 384, 3), "5.13": (256, 256, 3)}
    alex = {}
    for index, (name, (wide, deep, side)) in enumerate(layers.items()):
        alex[f"net.slice{name}.weight"] = torch.randn(wide, deep, side, side) * (2 / (deep * side * side)) ** 0.5
        alex[f"net.slice{name}.bias"] = torch.zeros(wide)
        alex[f"lin{index}.model.1.weight"] = torch.rand(1, wide, 1, 1)
    save_file(alex, folder / "st_lpips_alex.safetensors")
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "efficientnet_lite0.safetensors")
    (folder / "sources.json").write_text("{}")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """DATA_DIR and CHECKPOINT_DIR, prepared."""
    root = tmp_path_factory.mktemp("miniature")
    prepare_photographs(root / "data")
    (root / "checkpoints" / "tiny").mkdir(parents=True)
    prepare_backbones(root / "checkpoints" / "tiny")
    return {"DATA_DIR": str(root / "data"), "CHECKPOINT_DIR": str(root / "checkpoints"), "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE"}


def start(places, output, log):
    """demo.py as a user starts it, in a process group of its own as a terminal would give it."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--quick", "--output", output, *SETTINGS]
    environment = {"PYTHONPATH": str(ROOT), **os.environ, **places}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT,
                            start_new_session=True)


def load_demo():
    spec = importlib.util.spec_from_file_location("script_demo", ROOT / "scripts" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


def finish(places, output, *more):
    """The demo to its end with stages in this process, which saves their start-up: (summary, stages trained, text)."""
    from muse.training import trainer
    demo, trained, said = load_demo(), [], io.StringIO()

    def command(script, config, *settings):
        stage = int(re.fullmatch(r"tools/train_stage(\d).sh", script)[1])
        trained.append(stage)
        trainer.main(stage, ["--config", f"{ROOT}/configs/{config}/stage{stage}.yaml", *map(str, settings)])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for name, value in places.items():
            patch.setenv(name, value)
        patch.setattr(demo, "command", command)
        demo.main(["--quick", "--output", str(output), *SETTINGS, *more])
    written = output / "summary.json"
    return json.loads(written.read_text()) if written.is_file() else None, trained, said.getvalue()


def wait_for(path, process, log, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < deadline, f"{path} did not appear\n{log.read_text()}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(places, tmp_path_factory):
    """A run of seed 42 that was interrupted (Ctrl-C) in stage 2 and started again: its directory, status and logs."""
    root = tmp_path_factory.mktemp("demo")
    output, log = root / "seed-42", root / "log"
    process = start(places, output, log)
    wait_for(output / "stage2" / "samples" / "000000.png", process, log)
    os.killpg(process.pid, signal.SIGINT)
    status = process.wait(timeout=60)
    first = log.read_text()
    left = sorted(path.name for path in (output / "stage2").glob("checkpoint-*"))
    moments = sorted(path.name for path in (output / "moments").glob("*.json"))
    summary, trained, second = finish(places, output)
    return argparse.Namespace(output=output, summary=summary, first=first, second=second, status=status, left=left,
                              moments=moments, trained=trained)


def metadata(run, stage):
    return json.loads((run / f"stage{stage}" / f"checkpoint-{STEPS:06d}" / "metadata.json").read_text())


def test_interrupted_in_stage_2_it_saves_and_goes_on(finished):
    first, second = finished.first, finished.second
    assert finished.status == 130 and first.splitlines()[-1] == "error: interrupted" and "Traceback" not in first
    assert "stopped by signal" in first  # the training had ended when the demo did
    assert "stage 1: training" in first and finished.moments == ["stage1.json", "start.json"]
    assert len(finished.left) == 1 and "checkpoint-000000" < finished.left[0] < f"checkpoint-{STEPS:06d}"
    assert finished.trained == [2, 3] and "start: measuring" not in second
    assert re.search(rf"continuing at step [1-{STEPS - 1}] from .*{finished.left[0]}", second)


def test_the_summary_holds_every_number(finished):
    summary = finished.summary
    for moment in MOMENTS:
        assert all(math.isfinite(summary[moment][name]) for name in METRICS)
        assert summary[moment]["psnr_mean_colour"] == summary["start"]["psnr_mean_colour"] > 5
        assert 0.001 < summary[moment]["topology_kl_uniform"] == pytest.approx(summary["start"]["topology_kl_uniform"])
    assert len({summary[moment]["psnr"] for moment in MOMENTS}) == 4
    assert summary["majority_share"] == 0.5 and 0 <= summary["linear_probe_encoder_top1"] <= 1
    assert summary["images_seen"] == 3 * STEPS * BATCH and 200 < summary["peak_memory_mb"] < 20_000
    steps = summary["seconds_by_step"]
    assert set(steps) == {f"measure {moment}" for moment in MOMENTS} | {f"train stage{stage}" for stage in (1, 2, 3)}
    assert summary["seconds"] == pytest.approx(sum(steps.values()), abs=0.1) and min(steps.values()) > 0
    table = (finished.output / "table.md").read_text()
    assert table in finished.second and f"{summary['stage3']['psnr']:.3f}" in table


def test_each_stage_starts_from_the_one_before(finished):
    last = f"checkpoint-{STEPS:06d}"
    parents = [metadata(finished.output, stage)["parent"] for stage in (1, 2, 3)]
    assert parents == [None, str(finished.output / "stage1" / last), str(finished.output / "stage2" / last)]
    assert [metadata(finished.output, stage)["stage"] for stage in (1, 2, 3)] == [1, 2, 3]


def test_the_picture(finished):
    with Image.open(finished.output / "picture.png") as picture:
        width, height = picture.size
        assert height == 4 + 7 * (112 + 4) and width > 8 * (112 + 4)
        assert np.asarray(picture).std() > 20


def test_started_again_it_trains_and_measures_nothing(finished, places):
    summary, trained, text = finish(places, finished.output)
    assert trained == [] and "measuring" not in text
    assert summary.pop("peak_memory_mb") >= finished.summary["peak_memory_mb"]
    assert summary == {name: value for name, value in finished.summary.items() if name != "peak_memory_mb"}


def test_a_lost_moment_is_measured_again_from_the_finished_stage(finished, places):
    (finished.output / "moments" / "stage2.json").unlink()
    again, trained, text = finish(places, finished.output)
    assert trained == [2] and "continuing at step" in text and metadata(finished.output, 2)["step"] == STEPS
    assert again["stage2"] == pytest.approx(finished.summary["stage2"], rel=1e-4)
    assert again["stage3"] == finished.summary["stage3"]


def test_several_seeds_give_means_over_their_summaries(finished, places):
    output = finished.output.parent
    _, trained, _ = finish(places, output, "--seeds", "2")
    assert trained == [1, 2, 3]  # seed 42 is done
    runs = json.loads((output / "spread.json").read_text())
    assert list(runs) == ["42", "43"]
    for seed, summary in runs.items():
        assert summary == json.loads((output / f"seed-{seed}" / "summary.json").read_text())
    assert runs["42"]["stage1"]["psnr"] != runs["43"]["stage1"]["psnr"]
    row = next(line for line in (output / "spread.md").read_text().splitlines() if line.startswith("| PSNR"))
    shown = [tuple(map(float, cell.split(" ± "))) for cell in row.split("|")[3:-1]]
    for moment, (mean, spread) in zip(MOMENTS, shown, strict=True):
        one, other = (summary[moment]["psnr"] for summary in runs.values())
        assert mean == pytest.approx((one + other) / 2, abs=6e-4)
        assert spread == pytest.approx(abs(one - other) / 2 ** 0.5, abs=6e-4)


@pytest.mark.parametrize("change", [["--seed", "7"], ["model.grad_scale=0.25"]])
def test_other_settings_in_the_same_directory_are_refused(finished, call, change):
    status, _, errors = call("demo", "--quick", "--output", finished.output, *SETTINGS, *change)
    assert status == 1
    assert errors == f"error: {finished.output} holds a demo with other settings; give another --output, or remove it\n"
    assert call("demo", "--output", finished.output, *SETTINGS)[0] == 1  # without --quick


def test_what_is_no_setting_is_refused_before_anything_is_written(call, tmp_path):
    status, _, errors = call("demo", "--output", tmp_path / "new", "--fast")
    assert status == 2 and "unrecognized argument '--fast'" in errors and not (tmp_path / "new").exists()


def test_a_failed_step_ends_the_demo_with_its_name():
    with pytest.raises(ValueError, match=r"tools/train_stage1.sh failed \(exit status 1\)"):
        load_demo().command("tools/train_stage1.sh", "no_such_configuration")


def run_slow(command, **environment):
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, **environment})


@pytest.mark.slow
def test_the_launcher_from_nothing_shows_topology_falling(tmp_path):
    """Network, minutes: bash tools/demo.sh --quick into an empty place."""
    run_slow(["bash", ROOT / "tools" / "demo.sh", "--quick", "--output", tmp_path / "demo"],
             MUSE_VENV=str(tmp_path / "venv"), DATA_DIR=str(tmp_path / "data"),
             CHECKPOINT_DIR=str(tmp_path / "checkpoints"))
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    for stage in MOMENTS[1:]:
        assert summary[stage]["topology_kl"] < summary["start"]["topology_kl"]
        assert summary[stage]["topology_kl"] < summary[stage]["topology_kl_uniform"]
    assert summary["stage3"]["psnr"] > summary["start"]["psnr"]


@pytest.mark.slow
def test_three_seeds_reach_the_targets(tmp_path):
    """Network, about an hour: the miniature's claims for every seed. Set DATA_DIR and CHECKPOINT_DIR to reuse them."""
    run_slow([sys.executable, ROOT / "scripts" / "demo.py", "--seeds", 3, "--output", tmp_path / "demo"],
             PYTHONPATH=str(ROOT))
    runs = json.loads((tmp_path / "demo" / "spread.json").read_text())
    assert len(runs) == 3
    for summary in runs.values():
        first, second, third = (summary[stage] for stage in MOMENTS[1:])
        assert first["topology_kl"] < first["topology_kl_uniform"]
        assert first["topology_kl"] < summary["start"]["topology_kl"]
        assert first["psnr"] > first["psnr_mean_colour"] + 1
        assert second["zero_shot_top1"] >= 2 * summary["majority_share"]
        assert second["topology_kl"] < second["topology_kl_uniform"]
        assert third["psnr"] > second["psnr"] and third["st_lpips"] < second["st_lpips"]
