import pytest

from muse.config import ConfigError
from muse.utils import cli


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("losses: {topology_weight: 0}\n")
    return str(path)


def make_parser():
    parser = cli.parser("Do a thing.")
    parser.add_argument("--image_path")
    return parser


@pytest.mark.parametrize("order", [
    ["--config", "FILE", "training.seed=3", "--image_path", "a=b.jpg"],
    ["training.seed=3", "--image_path", "a=b.jpg", "config=FILE"],
    ["--config=FILE", "--image_path=a=b.jpg", "training.seed=3"]])
def test_flags_and_overrides_in_any_order(file, order):
    args, config = cli.parse(make_parser(), [item.replace("FILE", file) for item in order])
    assert config.training.seed == 3
    assert (args.image_path, args.config) == ("a=b.jpg", file)


def test_later_override_wins(file):
    _, config = cli.parse(make_parser(), ["--config", file, "training.seed=3", "training.seed=4"])
    assert config.training.seed == 4


@pytest.mark.parametrize("extra, essence", [
    (["--imag", "x"], "unrecognized argument '--imag'"), (["stray"], "unrecognized argument 'stray'"),
    (["config=other.yaml"], "two config files")])
def test_what_is_not_understood_exits_with_usage(file, extra, essence, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(make_parser(), ["--config", file, *extra])
    assert stop.value.code == 2
    assert essence in capsys.readouterr().err


def test_no_config(capsys):
    with pytest.raises(SystemExit):
        cli.parse(make_parser(), ["training.seed=1"])
    assert "no config file: give --config FILE" in capsys.readouterr().err


def test_unresolved_environment(file, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    override = "dataset.params.eval_shards=${DATA_DIR}/v.tar"
    with pytest.raises(ConfigError, match="command line: dataset.params.eval_shards uses .* DATA_DIR"):
        cli.parse(make_parser(), ["--config", file, override])
    _, config = cli.parse(make_parser(), ["--config", file, override], resolve_env=False)
    assert config.dataset.params.eval_shards == "${DATA_DIR}/v.tar"


@pytest.mark.parametrize("error, status, line", [
    (ValueError("width 3 is odd; use 4"), 1, "error: width 3 is odd; use 4\n"),
    (FileNotFoundError("no such shard"), 1, "error: no such shard\n"),
    (ValueError(), 1, "error: ValueError\n"), (KeyboardInterrupt(), 130, "error: interrupted\n")])
def test_run_turns_mistakes_into_one_line(error, status, line, capsys, monkeypatch):
    monkeypatch.delenv("MUSE_DEBUG", raising=False)

    def main():
        raise error
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == status
    assert capsys.readouterr().err == line


def test_run_shows_the_traceback_on_request_and_for_defects(monkeypatch):
    monkeypatch.setenv("MUSE_DEBUG", "1")
    with pytest.raises(ValueError):
        cli.run(lambda: int("x"))
    monkeypatch.delenv("MUSE_DEBUG")
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


@pytest.mark.parametrize("status, code", [(None, None), (0, 0), (3, 3)])
def test_run_exits_with_mains_status(status, code):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: status)
    assert stop.value.code == code
