"""tools/demo.sh: what it needs, what it installs into, what it hands to scripts/demo.py. Recorders stand in for Python."""
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then exit "${TOO_OLD:-0}"; fi
if [ "$1 $2" = "-m venv" ]; then
    [ -z "${NO_VENV:-}" ] || exit 1
    mkdir -p "$3/bin" && cp "$RECORDER" "$3/bin/python" && cp "$RECORDER" "$3/bin/pip"
fi
"""
RECORDER = """#!/bin/bash
printf '%s\\n' "program $0" "directory $PWD" "$@" end
[ "$2" != pip ] || exit "${PIP_STATUS:-0}"
exit "${DEMO_STATUS:-0}"
"""


@pytest.fixture
def workplace(tmp_path):
    """A directory with a space in its name, programs of a Debian system and the recorder."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("python3", SYSTEM_PYTHON), ("recorder", RECORDER), ("apt-get", "#!/bin/bash\n"),
                       ("dpkg-deb", "#!/bin/bash\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("bash", "dirname", "mkdir", "cp"):
        (programs / name).symlink_to(shutil.which(name))
    (tmp_path / "a folder").mkdir()
    return tmp_path


@pytest.fixture
def launch(workplace):
    def launch(*arguments, root=ROOT, **environment):
        programs = workplace / "programs"
        clean = {"PATH": str(programs), "RECORDER": str(programs / "recorder"), "MUSE_VENV": str(workplace / "venv"),
                 **environment}
        done = subprocess.run([str(programs / "bash"), str(root / "tools" / "demo.sh"), *map(str, arguments)],
                              cwd=workplace / "a folder", env={k: v for k, v in clean.items() if v is not None},
                              capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr
    return launch


def calls(lines):
    """What each recorder was: [program, directory, arguments...]."""
    return [call.strip("\n").split("\n") for call in "\n".join(lines).split("program ")[1:]]


def test_installs_and_passes_everything_through(launch, workplace):
    status, lines, errors = launch("--quick", "--output", "my results", "training.seed=3")
    assert (status, errors) == (0, "")
    install, demo = calls(lines)
    venv = workplace / "venv" / "bin" / "python"
    assert install[0] == demo[0] == str(venv)
    assert install[1] == f"directory {ROOT}" and install[2:4] == ["-m", "pip"] and "-e" in install
    assert ".[demo]" in install
    assert demo[1] == f"directory {workplace / 'a folder'}"  # a relative --output is the caller's
    assert demo[2:] == [str(ROOT / "scripts" / "demo.py"), "--quick", "--output", "my results", "training.seed=3", "end"]


def test_an_environment_that_is_there_is_used(launch, workplace):
    launch()
    (workplace / "venv" / "kept").touch()
    status, lines, _ = launch(NO_VENV="1")
    assert status == 0 and len(calls(lines)) == 2 and (workplace / "venv" / "kept").exists()
    assert not any("making" in line for line in lines)


def test_the_active_environment_comes_before_a_new_one(launch, workplace):
    status, lines, _ = launch(MUSE_VENV=None, VIRTUAL_ENV=str(workplace / "active"))
    assert status == 0 and calls(lines)[1][0] == str(workplace / "active" / "bin" / "python")


def test_works_where_the_path_has_spaces_and_makes_its_own_environment_there(launch, workplace):
    root = workplace / "MUSE of mine"
    shutil.copytree(ROOT / "tools", root / "tools")
    status, lines, errors = launch(root=root, MUSE_VENV=None)
    assert status == 0, errors
    assert (root / ".venv" / "bin" / "python").is_file() and calls(lines)[1][2] == str(root / "scripts" / "demo.py")


@pytest.mark.parametrize("failure, status, count", [({"PIP_STATUS": "3"}, 3, 1), ({"DEMO_STATUS": "7"}, 7, 2)])
def test_failures_are_the_launchers_own(launch, failure, status, count):
    found, lines, _ = launch(**failure)
    assert (found, len(calls(lines))) == (status, count)


OLD = ("error: python3 is older than 3.10 or missing; install Python 3.10 or newer, or name one: "
       "PYTHON=python3.12 bash tools/demo.sh\n")
NOT_DEBIAN = ("error: apt-get and dpkg-deb are missing; the demo's photographs come in Debian packages, so it needs "
              "Debian or Ubuntu\n")


def test_old_python(launch):
    assert launch(TOO_OLD="1") == (1, [], OLD)


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_no_debian(launch, workplace, missing):
    (workplace / "programs" / missing).unlink()
    assert launch() == (1, [], NOT_DEBIAN)


def test_no_python(launch, workplace):
    (workplace / "programs" / "python3").unlink()
    status, lines, errors = launch()
    assert (status, lines) == (1, []) and errors == OLD


def test_no_venv_module(launch):
    status, _, errors = launch(NO_VENV="1")
    assert status == 1 and errors == ("error: could not make a virtual environment; install it with: "
                                      "apt-get install python3-venv\n")
