"""Reading weights from files without running code: our bundles, safetensors and torch state dicts."""

import json
import math
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from csrtrain.files import check_file, shown

FORMAT = 1
"""Version of the bundle format; see `csrtrain.bundle`."""

MAX_HEADER_BYTES = 8 * 2**20
"""Largest safetensors header that is read (ours: about 120 bytes per tensor and a few kB of JSON)."""

_DEEPEST = 32  # mappings and lists within each other; ours: 5
_MOST_PARTS = 100_000  # of one depth; ours: hundreds
_MOST_OLD_BYTES = 2**31  # of a file in torch's old format, which is read through for a look
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
        try:
            return Weights(safetensors.torch.load_file(path), header)
        except Exception as error:  # a type of number that torch does not have raises a bare one
            reason = shown(f"{type(error).__name__}: {error}")
            raise ValueError(
                f"Expected tensors in {path}, got what torch cannot read ({reason}). Export them again."
            ) from None
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
    tensors = {name.removeprefix("module."): value for name, value in content.items() if isinstance(name, str)}
    foreign = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if foreign or not tensors or len(tensors) < len(content):
        raise ValueError(
            f"Expected a state dict (names and tensors) in {path}, got {shown(foreign[:3] or 'no names')} instead of "
            "tensors. Save model.state_dict() alone."
        )
    check_tensors(tensors, path)
    return Weights(tensors, None)


def check_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Refuse tensors that are larger than what the file holds of them: sparse ones, and a number shown many times.

    Raises:
        ValueError: there is one.
    """
    for name, value in tensors.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"Expected plain tensors with all their numbers in {path}, got another as {shown(name)}. Save them "
                "with .contiguous()."
            )


def read_torch(path: str | Path) -> dict[str, Any]:
    """Read a file of torch.save with `weights_only=True`: plain data and tensors, no code.

    Raises:
        ValueError: the file is missing, damaged, holds more than plain data, or no dict.
    """
    try:
        check_file(path)
    except FileNotFoundError:
        raise ValueError(f"Expected a file, got none at {path}. Check the path.") from None
    _check_pickle(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old ways to save, without the file's name
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any of them
        # torch's own message tells the reader to switch the protection off, so only its cause is passed on.
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            got, advice = f"a pickle that asks for {shown(name[1])} and could run code", "Do not use this file"
        else:
            got, advice = f"a damaged or foreign file ({type(error).__name__})", "Use another copy"
        raise ValueError(f"Expected tensors and plain data in {path}, got {got}. {advice}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"Expected a dict in {path}, got a {type(content).__name__}. Check the path.")
    return content


def _check_pickle(path: Path) -> None:
    """Refuse what torch would unpack to more than the file holds; no code can run, but memory could be filled.

    torch writes zip files without compression, and needs no bytearray, whose length a pickle may claim freely.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
                declared = sum(part.file_size for part in parts)
                if declared > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                    raise ValueError(
                        f"Expected a file of torch.save, whose parts are not compressed, in {path}, got {declared} "
                        f"bytes packed in {size}. Do not use this file."
                    )
                pickles = [archive.open(part) for part in parts if part.filename.lower().endswith(".pkl")]
                found = any([_asks_for_bytearray(one) for one in pickles])
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, OverflowError, UnicodeError):
            raise ValueError(
                f"Expected a whole file of torch.save in {path}, got a damaged or foreign file. Use another copy."
            ) from None
    elif head[:1] == b"\x80" and size <= _MOST_OLD_BYTES:  # what torch wrote before 1.6: pickles, then numbers
        with path.open("rb") as old:
            found = _asks_for_bytearray(old)
    else:  # torch would unpack a tar archive to look
        raise ValueError(
            f"Expected a file of torch.save in {path}, got a damaged or foreign file, or one of an old format with "
            f"more than {_MOST_OLD_BYTES} bytes. Use another copy, or save it again."
        )
    if found:
        raise ValueError(
            f"Expected tensors and plain data in {path}, got a bytearray, which may claim any length. Do not use "
            "this file."
        )


def _asks_for_bytearray(file: IO[bytes]) -> bool:
    tail = b""
    while part := file.read(2**20):
        if b"bytearray" in tail + part:
            return True
        tail = part[-16:]
    return False


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
        reason = shown(str(error))
        raise ValueError(f"Expected a whole safetensors file, got {path}: {reason}. Use another copy.") from None
    if _METADATA_KEY not in metadata:
        return None
    try:
        header = json.loads(
            metadata[_METADATA_KEY], object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
        check_plain(header)
    except (ValueError, RecursionError) as error:
        reason = shown(str(error))
        raise ValueError(f"Expected a JSON header in {path}, got damaged text ({reason}). Use another copy.") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ValueError(
            f"Expected bundle format {FORMAT} in {path}, got {shown(got)}. Use the csrtrain that wrote it."
        )
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose names differ: of two values of one name, readers would not agree which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice in a mapping")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text}")
    return number


def check_plain(content: Any) -> None:
    """Refuse what printing or copying could not follow: deep nesting, and parts that stand in each other many times.

    Raises:
        ValueError: it is so, or there is more than text, numbers, mappings and lists.
    """
    level = [content]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                if not all(isinstance(name, str) for name in one):
                    raise ValueError("names that are no text")
                inner += one.values()
            elif isinstance(one, list | tuple):
                inner += one
            elif isinstance(one, int) and abs(one) > 2**63:
                raise ValueError("an integer beyond 64 bits")
            elif not isinstance(one, str | int | float | None):
                raise ValueError(f"a {type(one).__name__}")
            if len(inner) > _MOST_PARTS:
                raise ValueError(f"more than {_MOST_PARTS} parts")
        level = inner
        if not level:
            return
    raise ValueError(f"nesting deeper than {_DEEPEST}")


def _check_size(path: Path) -> None:
    """Refuse what claims an absurd header before anything is allocated for it."""
    try:
        size = check_file(path).st_size
        with path.open("rb") as file:
            first = file.read(8)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
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
