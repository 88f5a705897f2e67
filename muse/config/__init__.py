"""Configuration: the YAML schema, loading with `key=value` overrides, and `python -m muse.config check`."""
from muse.config.loading import ConfigError, config_from_dict, load_config, save_config
from muse.config.schema import MuseConfig

__all__ = ["ConfigError", "MuseConfig", "config_from_dict", "load_config", "save_config"]
