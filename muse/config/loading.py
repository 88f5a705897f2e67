"""YAML file and `key=value` overrides -> MuseConfig, with every mistake named by key and source."""
import difflib
import logging
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Tuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from muse.config.keys import known_keys, sections
from muse.config.schema import ALIASES, CONVERSIONS, OBSOLETE, MuseConfig

COMMAND_LINE = "command line"
_BARE = re.compile(r"(?<!\\)\$\{([A-Z][A-Z0-9_]*)\}")       # ${CHECKPOINT_DIR}, as published files write it
_VARIABLE = re.compile(r"(?<!\\)\$\{oc\.env:([A-Za-z_]\w*)\}")  # without a default value

logger = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A mistake in a configuration; `problems` lists each in one sentence."""

    def __init__(self, *problems: str):
        super().__init__("; ".join(problems))
        self.problems = problems


def load_config(path, overrides: Iterable[str] = (), *, resolve_env: bool = True) -> MuseConfig:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    With `resolve_env=False` the config serves a checkpoint's use rather than training: an unset environment variable
    stays in the text as `${NAME}`, and rules that only training needs are left out. Raises FileNotFoundError or
    ConfigError.
    """
    path = Path(path)
    given = [(_read(path), str(path))]
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: {item!r} is not of the form key=value")
        try:
            given.append((OmegaConf.to_container(OmegaConf.from_dotlist([item])), COMMAND_LINE))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{COMMAND_LINE}: {item!r} cannot be read: {_line(error)}") from error
    return _build(given, resolve_env)


def config_from_dict(data: Dict[str, Any], *, source: str = "dictionary", resolve_env: bool = True) -> MuseConfig:
    """The same from a nested dictionary; `source` names it in messages."""
    return _build([(data, source)], resolve_env)


def save_config(config: MuseConfig, path) -> None:
    """Write every key as YAML; `load_config` reads it back to an equal object."""
    OmegaConf.save(OmegaConf.structured(config), path)


def _read(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {_line(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:', found a {type(data).__name__}")
    return data


def _build(given: List[Tuple[Dict[str, Any], str]], resolve_env: bool) -> MuseConfig:
    values: Dict[str, Tuple[Any, str]] = {}
    for data, source in given:
        for key, value in _current_keys(data, source).items():
            if isinstance(value, dict) and key in values and isinstance(values[key][0], dict):
                value = OmegaConf.to_container(OmegaConf.merge(values[key][0], value))
            values[key] = (value, source)

    config = OmegaConf.structured(MuseConfig)
    for key, (value, source) in values.items():
        value = _environment(value, key, source, resolve_env)
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            raise _type_error(key, value, source) from error
    try:
        config = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = next((k for k in values if (error.full_key or "").startswith(k)), error.full_key)
        value, source = values.get(key, (None, "schema"))
        if isinstance(error, InterpolationResolutionError):
            raise ConfigError(f"{source}: {key} = {value!r} cannot be resolved: {_line(error)}") from error
        raise _type_error(key, value, source) from error
    problems = [*config.problems(), *(config.training_problems() if resolve_env else ())]
    if problems:
        raise ConfigError(*(f"{given[0][1]}: {problem}" for problem in problems))
    return config


def _current_keys(data: Dict[str, Any], source: str) -> Dict[str, Any]:
    """Flat {known key: value} of one source: aliases renamed, obsolete keys dropped with one warning."""
    found, dropped, unknown = {}, [], []
    for key, value in _leaves(data, source):
        if key in OBSOLETE:
            dropped.append(f"{key} ({OBSOLETE[key]})")
            continue
        name = ALIASES.get(key, key)
        if name not in known_keys():
            unknown.append(f"{source}: unknown key '{key}'{_suggestion(key)}")
        elif name in found:
            raise ConfigError(f"{source}: '{key}' and '{name}' name the same setting; keep '{name}'")
        else:
            found[name] = CONVERSIONS[key](value) if key in CONVERSIONS else value
    if unknown:
        raise ConfigError(*unknown)
    if dropped:
        logger.warning("%s: keys without effect here: %s", source, "; ".join(dropped))
    return found


def _leaves(data: Dict[str, Any], source: str, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key not in sections():
            yield key, value
        elif isinstance(value, dict):
            yield from _leaves(value, source, key + ".")
        elif value is not None:  # an empty section is no mistake
            raise ConfigError(f"{source}: '{key}' is a section of keys, not a value ({value!r})")


def _suggestion(key: str) -> str:
    names = [*known_keys(), *sections()]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if not close:  # the right name in the wrong section
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], [n.rsplit(".", 1)[-1] for n in names], n=1)
        close = [n for n in names if leaf and n.rsplit(".", 1)[-1] == leaf[0]]
    return f"; did you mean '{close[0]}'?" if close else "; `python -m muse.config keys` lists all keys"


def _environment(value: Any, key: str, source: str, resolve_env: bool) -> Any:
    """Spell environment variables as OmegaConf does; an unset one fails, or stays as literal text."""
    if isinstance(value, dict):
        return {k: _environment(v, f"{key}.{k}", source, resolve_env) for k, v in value.items()}
    if isinstance(value, list):
        return [_environment(v, key, source, resolve_env) for v in value]
    if not isinstance(value, str):
        return value

    def check(match):
        name = match.group(1)
        if name in os.environ:
            return match.group(0)
        if resolve_env:
            raise ConfigError(f"{source}: {key} uses the environment variable {name}, which is not set: "
                              f"export {name}=/path/to/directory")
        return f"\\${{{name}}}"

    return _VARIABLE.sub(check, _BARE.sub(r"${oc.env:\1}", value))


def _type_error(key: str, value: Any, source: str) -> ConfigError:
    expected = known_keys()[key].type if key in known_keys() else "another type"
    return ConfigError(f"{source}: {key} = {value!r} is of the wrong type; expected: {expected}")


def _line(error: Exception) -> str:
    """The error's words on one line, without OmegaConf's trailing details."""
    return re.sub(r"\s+", " ", str(error).partition("\n    full_key")[0]).strip()
