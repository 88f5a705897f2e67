"""Every key of the schema with its type, default and comment, read from schema.py itself."""
import ast
import functools
import inspect
import json
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Dict, Union

from muse.config import schema

_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "any value", dict: "mapping"}


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration: its type in words, its default value and the comment beside it."""
    type: str
    default: Any
    comment: str


@functools.lru_cache(maxsize=None)
def known_keys() -> Dict[str, Key]:
    """Dotted name -> Key, in the order of schema.py."""
    return dict(_walk(schema.MuseConfig, ""))


@functools.lru_cache(maxsize=None)
def sections() -> frozenset:
    """Dotted names that hold further keys, for example `model` and `model.encoder`."""
    return frozenset(key.rsplit(".", n)[0] for key in known_keys() for n in range(1, key.count(".") + 1))


def markdown_table() -> str:
    """All keys as a Markdown table."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, key in known_keys().items():
        default = key.default if isinstance(key.default, str) else json.dumps(key.default)
        cells = (f"`{name}`", key.type, f"`{default}`", key.comment)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _walk(cls, prefix):
    comments, hints = _comments(cls), typing.get_type_hints(cls)
    for item in fields(cls):
        name, hint = prefix + item.name, hints[item.name]
        if is_dataclass(hint):
            yield from _walk(hint, name + ".")
        else:
            default = item.default if item.default is not MISSING else item.default_factory()
            yield name, Key(_type_name(hint), default, comments.get(item.name, ""))


def _type_name(hint) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:  # Optional[...]
        return f"{_type_name(arguments[0])} or null"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    return _NAMES[origin or hint]


def _comments(cls) -> Dict[str, str]:
    """Field name -> the comment at the end of the field's line, base classes included."""
    found = {}
    for base in reversed([b for b in cls.__mro__ if is_dataclass(b)]):
        source = inspect.getsource(base)
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign):
                rest = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()
                found[node.target.id] = rest.partition("#")[2].strip()
    return found
