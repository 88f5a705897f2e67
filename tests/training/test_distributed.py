import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import tiny_config

HERE = Path(__file__).resolve().parent


def train(root, launcher=()):
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, str(HERE / "two_processes.py"), str(root), "3"], env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one_on_the_same_global_batches(tmp_path):
    """Every loss, both optimizers, the gathered ITC negatives; parameters that hear no loss do not stall stage 1."""
    tiny_config(tmp_path)  # writes the shards before two processes would
    train(tmp_path)
    train(tmp_path, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    for stage in ("stage1", "stage3"):
        files = [tmp_path / f"{n}-{stage}" / "metrics.jsonl" for n in (1, 2)]
        one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        assert [line["step"] for line in two] == [1, 2, 3]
        for a, b in zip(one, two):
            for name in set(a) - {"images_per_second", "data_wait_share"}:
                assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-5), (stage, a["step"], name)
        ranks = [json.loads((tmp_path / f"2-{stage}-rank{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0] == ranks[1]
        assert (tmp_path / f"2-{stage}" / "checkpoint-000003" / "model.safetensors").is_file()
