"""Reading weights from files without running code: our bundles, safetensors and torch state dicts."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

FORMAT = 1
"""Version of the bundle format; see `csrtrain.bundle`."""

MAX_HEADER_BYTES = 8 * 2**20
"""Largest safetensors header that is read (ours: about 120 bytes per tensor and a few kB of JSON)."""

_METADATA_KEY = "csrtrain"
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")


class Weights(NamedTuple):
    """Tensors by name, and the bundle header when the file is a bundle of ours."""

    tensors: dict[str, Tensor]
    header: dict[str, Any] | None


def read(path: str | Path) -> Weights:
    """Read a bundle, a safetensors file, or a torch state dict.

    Args:
        path: `.safetensors` (a bundle, or plain tensors), or `.pth`, `.pt`, `.bin`, `.tar`, `.ckpt`, which torch reads
            with `weights_only=True`. Wrappers that training scripts leave around a state dict (`state_dict`, `model`)
            and name prefixes (`module.`) are taken off.

    Raises:
        ValueError: the file is missing, damaged, of another format, or holds more than tensors and plain data.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        header = read_header(path)
        return Weights(safetensors.torch.load_file(path), header)
    if path.suffix not in _TORCH_SUFFIXES:
        raise ValueError(
            f"Expected weights in a {', '.join(('.safetensors', *_TORCH_SUFFIXES))} file, got {path}. Check the path."
        )
    content = read_torch(path)
    if "csrtrain" in content:
        raise ValueError(
            f"Expected weights, got a checkpoint of a csrtrain run in {path}. Make a bundle of it with csrtrain export."
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {name.removeprefix("module."): value for name, value in content.items()}
    foreign = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if foreign or not tensors:
        raise ValueError(
            f"Expected a state dict (names and tensors) in {path}, got {foreign[:3] or 'nothing'} instead of tensors. "
            "Save model.state_dict() alone."
        )
    return Weights(tensors, None)


def read_torch(path: str | Path) -> dict[str, Any]:
    """Read a file of torch.save with `weights_only=True`: plain data and tensors, no code.

    Raises:
        ValueError: the file is missing, damaged, holds more than plain data, or no dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"Expected a file, got none at {path}. Check the path.") from None
    except Exception as error:  # a damaged file can raise any of them
        # torch's own message tells the reader to switch the protection off, so only its cause is passed on.
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            got, advice = f"a pickle that asks for {name[1]} and could run code", "Do not use this file"
        else:
            got, advice = f"a damaged or foreign file ({type(error).__name__})", "Use another copy"
        raise ValueError(f"Expected tensors and plain data in {path}, got {got}. {advice}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"Expected a dict in {path}, got a {type(content).__name__}. Check the path.")
    return content


def read_header(path: str | Path) -> dict[str, Any] | None:
    """The JSON header of a bundle; None for a safetensors file that is none. No tensor is read.

    Raises:
        ValueError: the file is missing, damaged, no safetensors file, or a bundle of an unknown format.
    """
    path = Path(path)
    _check_size(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"Expected a whole safetensors file, got {path}: {error}. Use another copy.") from None
    if _METADATA_KEY not in metadata:
        return None
    try:
        header = json.loads(metadata[_METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a JSON header in {path}, got damaged text ({error}). Use another copy.") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ValueError(f"Expected bundle format {FORMAT} in {path}, got {got!r}. Use the csrtrain that wrote it.")
    return header


def _check_size(path: Path) -> None:
    """Refuse what claims an absurd header before anything is allocated for it."""
    try:
        with path.open("rb") as file:
            first = file.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"Expected a file, got {error.strerror} for {path}. Check the path.") from None
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        if first[:4] == b"PK\x03\x04" or first[:1] == b"\x80":
            raise ValueError(f"Expected a safetensors file, got a pickle or zip file in {path}. Do not use this file.")
        raise ValueError(
            f"Expected a safetensors file with a header of at most {MAX_HEADER_BYTES} bytes, got {path} with {size} "
            f"bytes that claims {length}. Use another copy."
        )


def metadata(header: dict[str, Any]) -> dict[str, str]:
    """A bundle header as safetensors metadata; the same content gives the same bytes.

    Raises:
        ValueError: it is more than plain data, or holds numbers that are not finite.
    """
    try:
        return {_METADATA_KEY: json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":"))}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected plain, finite data in a bundle's header, got other: {error}. Take it out."
        ) from None


def cached(name: str) -> Path:
    """The file of a timm model's pretrained weights in the caches of huggingface_hub or torch.hub; no download.

    Raises:
        ValueError: timm has no weights for the model, or they are not in a cache.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ValueError(f"Expected a timm model with pretrained weights, got {name}. Set weights to none or a path.")
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        for file in ("model.safetensors", config.hf_hub_filename or "pytorch_model.bin"):
            found = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    if isinstance(config.url, str) and config.url:
        found_by_torch = Path(torch.hub.get_dir(), "checkpoints", Path(config.url).name)
        if found_by_torch.suffix in (*_TORCH_SUFFIXES, ".safetensors") and found_by_torch.is_file():
            return found_by_torch
    raise ValueError(
        f"Expected the pretrained weights of {name} in the local cache, got none, and nothing is downloaded unasked. "
        f"Fetch them once where there is a network, with: python -c \"import timm; timm.create_model('{name}', "
        'pretrained=True)", or set weights to the path of a file.'
    )
