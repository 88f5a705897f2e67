"""Every key of the schema is read somewhere outside the configuration package."""
import ast
from pathlib import Path

from muse.config.keys import known_keys

ROOT = Path(__file__).resolve().parents[2]


def attributes_read():
    """Names read as `.name` or `getattr(..., "name")`, and pairs `.section.name`."""
    names = set()
    for path in [*ROOT.glob("muse/**/*.py"), *ROOT.glob("scripts/*.py")]:
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
                if isinstance(node.value, ast.Attribute):
                    names.add(f"{node.value.attr}.{node.attr}")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                names.update(a.value for a in node.args[1:2] if isinstance(a, ast.Constant))
    return names


def test_every_key_has_a_reader():
    read = attributes_read()
    unread = []
    for key in known_keys():
        section, _, leaf = key.rpartition(".")
        wanted = f"{section.rpartition('.')[2]}.{leaf}" if leaf == "name" else leaf  # `.name` alone says nothing
        if wanted not in read:
            unread.append(key)
    assert not unread, f"keys that nothing reads: {', '.join(unread)}"
