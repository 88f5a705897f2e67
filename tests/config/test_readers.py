"""Every key of the schema is read somewhere outside the configuration package."""
import ast
from pathlib import Path

from muse.config.keys import known_keys

ROOT = Path(__file__).resolve().parents[2]


def attributes_read():
    """Names read as `.name` or `getattr(..., "name")`, and pairs `section.name`."""
    names = set()
    for path in [*ROOT.glob("muse/**/*.py"), *ROOT.glob("scripts/*.py")]:
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                names.update((node.attr, f"{owner}.{node.attr}"))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                names.update(a.value for a in node.args[1:2] if isinstance(a, ast.Constant))
    return names


def test_every_key_has_a_reader():
    read, unread = attributes_read(), []
    for key in known_keys():
        section, _, leaf = key.rpartition(".")
        # `.name` alone says nothing: a reader holds the section under its own name or as `config`
        wanted = {f"{section}.name", "config.name"} if leaf == "name" else {leaf}
        if not wanted & read:
            unread.append(key)
    assert not unread, f"keys that nothing reads: {', '.join(unread)}"
