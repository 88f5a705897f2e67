import hashlib
import os
import shutil
import stat
import subprocess

import pytest

from muse.utils import downloads
from muse.utils.downloads import default_cache, extract_deb, fetch_deb, fetch_wheel

PAYLOAD = b"payload"
GOOD = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Replaces the outside commands: writes PAYLOAD where a download goes; returns the list of calls."""
    calls = []

    def call(command, what, folder=None):
        calls.append(command)
        if "pip" in command:
            target = os.path.join(command[command.index("--dest") + 1], "some_pack-1.0-py3-none-any.whl")
        elif command[-2] == "download":
            target = os.path.join(folder, "some-pack_2.0-1_all.deb")
        elif "show" in command:
            return f"Package: some-pack\nSHA256: {GOOD}\n"
        else:
            return ""
        with open(target, "wb") as file:
            file.write(PAYLOAD)
        return ""

    monkeypatch.setattr(downloads, "_call", call)
    monkeypatch.setattr(downloads.shutil, "which", lambda name: "/bin/" + name)
    return calls


def test_wheel_is_fetched_once(commands, tmp_path):
    for _ in range(2):
        path = fetch_wheel("some-pack", "1.0", GOOD, tmp_path)
        assert path == tmp_path / "some_pack-1.0-py3-none-any.whl" and path.read_bytes() == PAYLOAD
    assert len(commands) == 1 and "some-pack==1.0" in commands[0] and "--no-deps" in commands[0]
    path.write_bytes(b"damaged")
    assert fetch_wheel("some-pack", "1.0", GOOD, tmp_path).read_bytes() == PAYLOAD and len(commands) == 2


def test_wrong_checksum_is_refused_and_leaves_nothing(commands, tmp_path):
    with pytest.raises(ValueError, match="some-pack 1.0 has sha256 .*, expected 00: the file is damaged"):
        fetch_wheel("some-pack", "1.0", "00", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_deb_of_the_pinned_version(commands, tmp_path, recwarn):
    assert fetch_deb("some-pack", "2.0-1", GOOD, tmp_path).name == "some-pack_2.0-1_all.deb"
    assert fetch_deb("some-pack", "2.0-1", GOOD, tmp_path).read_bytes() == PAYLOAD
    assert sum("download" in command for command in commands) == 1 and not recwarn.list


def test_deb_of_another_release_is_checked_against_the_index(commands, tmp_path):
    with pytest.warns(UserWarning, match="some-pack_2.0-1_all.deb stands in for some-pack 1.0-1: figures may differ"):
        assert fetch_deb("some-pack", "1.0-1", "00", tmp_path).name == "some-pack_2.0-1_all.deb"
    with pytest.warns(UserWarning, match="stands in"):
        assert fetch_deb("some-pack", "1.0-1", "00", tmp_path).read_bytes() == PAYLOAD
    assert sum("download" in command for command in commands) == 1


def test_deb_that_fits_neither_checksum_is_refused(commands, tmp_path, monkeypatch):
    call = downloads._call
    monkeypatch.setattr(downloads, "_call", lambda command, *rest: call(command, *rest).replace(GOOD, "11"))
    with pytest.raises(ValueError, match="expected 11"):
        fetch_deb("some-pack", "1.0-1", "00", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_apt_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"put some-pack_2.0-1_all.deb \(sha256 ab\) into"):
        fetch_deb("some-pack", "2.0-1", "ab", tmp_path)
    with pytest.raises(FileNotFoundError, match="dpkg-deb is not on this machine"):
        extract_deb(tmp_path / "x.deb", tmp_path / "x")


def test_failing_command_is_one_sentence(tmp_path, monkeypatch):
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho first >&2\necho 'E: Unable to locate package' >&2\nexit 100\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(OSError, match="apt-get could not provide apt's package lists: E: Unable to locate package$"):
        fetch_deb("some-pack", "2.0-1", "ab", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("MUSE_CACHE", "/some/where")
    assert str(default_cache()) == "/some/where"
    monkeypatch.delenv("MUSE_CACHE")
    assert str(default_cache()).endswith(".cache/muse/downloads")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which Debian and Ubuntu have")
def test_deb_is_unpacked_whole_or_not_at_all(tmp_path):
    (tmp_path / "pack" / "DEBIAN").mkdir(parents=True)
    (tmp_path / "pack" / "DEBIAN" / "control").write_text(
        "Package: pack\nVersion: 1\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: d\n")
    (tmp_path / "pack" / "file").write_text("content")
    subprocess.run(["dpkg-deb", "-b", tmp_path / "pack", tmp_path / "pack.deb"], check=True, capture_output=True)
    for _ in range(2):
        assert (extract_deb(tmp_path / "pack.deb", tmp_path / "to" / "x") / "file").read_text() == "content"
    (tmp_path / "bad.deb").write_bytes((tmp_path / "pack.deb").read_bytes()[:200])
    with pytest.raises(OSError, match="could not provide bad.deb"):
        extract_deb(tmp_path / "bad.deb", tmp_path / "to" / "bad")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["x"]
