"""Files that travel with vlmface, and YAML files of definitions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vlmface.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
YAML = (".yaml", ".yml")


def resource(name: str) -> Path:
    """The path of a file or folder that travels with vlmface.

    In a checkout the top-level folders are used, in an installed wheel their copy inside the
    package.

    Args:
        name: A relative path: "prompts/face_cot.yaml", "eval/benchmarks", "recipes/configs", or
            "tiny" for the built-in checkpoint.

    Raises:
        UserError: There is no such file.
    """
    for root in (_PACKAGE / "assets", _PACKAGE / "_files", _PACKAGE.parent):
        path = root / name
        if path.exists():
            return path
    raise UserError(
        f"{name!r} is not part of this vlmface installation ({_PACKAGE}): reinstall vlmface, "
        "or give the path of your own file"
    )


def definitions(folder: str) -> dict[str, Path]:
    """{name: its YAML file} of a folder that travels with vlmface, sorted by name."""
    return {file.stem: file for file in sorted(resource(folder).glob("*.yaml"))}


def is_yaml(name: str | Path) -> bool:
    """Whether a name is the path of a YAML file."""
    return str(name).endswith(YAML)


def content_sha(content: Any) -> str:
    """12 hex digits over the canonical JSON of a content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_yaml(path: Path, description: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file.
        description: What messages call it, such as "the prompt".

    Raises:
        UserError: The file cannot be read, holds anything else, or sets a key twice.
    """

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """PyYAML keeps the last of two equal keys silently. Its own parser takes minutes over deep
        nesting, libyaml's does not."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = (loader.construct_object(key) for key, _ in node.value)
        counts = Counter(key for key in keys if isinstance(key, Hashable))
        if repeated := [repr(key) for key, n in counts.items() if n > 1]:
            raise UserError(f"{path} sets {', '.join(repeated)} twice: keep one")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {description} {path}: it is not a regular file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {description} {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{description} {path} is not a YAML mapping of `key: value` lines")
    return content
