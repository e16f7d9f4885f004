"""A source: a sample's name, a path, ``kind:path?option=value``, a YAML file, or an in-memory object."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import yaml

from repertory.errors import DataError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """What a source names, before anything is read."""

    name: str
    target: Any
    kind: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    file: str | None = None

    @property
    def address(self) -> str:
        """What names the same data with the same options from any working directory."""
        path = self.file or self.target
        if not isinstance(path, str):
            return self.name
        kind = f"{self.kind}:" if self.kind else ""
        query = f"?{urlencode(self.options, safe=':,/')}" if self.options else ""
        return kind + (str(Path(path).absolute()) if Path(path).exists() else path) + query

    @classmethod
    def parse(cls, source: Any, kinds: tuple[str, ...]) -> Source:
        """Parses what the user gave; no file but a YAML source is read.

        Raises:
            DataError: the text cannot be understood.
        """
        if not isinstance(source, (str, Path)):
            return cls(name="memory", target=source)
        source = str(source)
        text, _, query = (source, "", "") if Path(source).exists() else source.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError:
            raise DataError(f"'{source}': after '?' write option=value, joined by '&'") from None
        options = dict(pairs)
        if len(options) < len(pairs):
            raise DataError(f"'{source}': an option is given twice; several columns are joined by commas")
        kind, colon, rest = text.partition(":")
        if colon and kind in kinds:
            text = rest
        elif colon and len(kind) > 1 and not Path(text).exists():
            raise DataError(f"'{source}': unknown kind '{kind}'; kinds: {', '.join(kinds)}")
        else:
            kind = ""
        if not text:
            raise DataError(f"'{source}': neither a path nor a sample is named")
        if Path(text).suffix in (".yaml", ".yml"):
            return cls._from_yaml(Path(text), kind or None, options, kinds)
        return cls(name=source, target=text, kind=kind or None, options=options)

    @classmethod
    def _from_yaml(cls, path: Path, kind: str | None, options: dict[str, str], kinds: tuple[str, ...]) -> Source:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected keys such as kind, path, label")
        base = path.parent

        def beside(value: str) -> str:
            head, colon, rest = value.partition(":")
            prefix, value = (f"{head}:", rest) if colon and head in kinds else ("", value)
            return prefix + (str(base / value) if (base / value.partition("?")[0]).exists() else value)

        parts = {part: beside(str(content.pop(part))) for part in PARTS if part in content}
        target = beside(str(content.pop("path"))) if "path" in content else None
        if target is None and "train" not in parts:
            raise DataError(f"{path}: neither 'path' nor 'train' names the data")
        if target is not None and parts:
            raise DataError(f"{path}: give either 'path' or {' and '.join(parts)}, not both")
        kind = content.pop("kind", kind)
        options = {**{str(name): as_text(value) for name, value in content.items()}, **options}
        return cls(name=str(path), target=target, kind=kind, options=options, parts=parts, file=str(path))


def as_text(value: Any) -> str:
    """An option as a source's query has it: several columns are joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
