"""What names a place on someone's machine, and is replaced by a number on the page: the same place, the same number."""

import re
from collections.abc import Mapping
from typing import Any

# Keys of a config whose values name files, folders or people, whatever they look like.
_KEYS = {
    *("root", "authentic", "manifest", "triplets", "labels", "cache_dir", "default_root_dir", "ckpt_path", "run_dir"),
    *(
        "weights",
        "dir",
        "save_dir",
        "root_dir",
        "sub_dir",
        "dirpath",
        "entity",
        "log_dir",
        "path",
        "filename",
        "host",
        "hostname",
        "user",
        "username",
    ),
}
_NO_PLACES = ("none", "imagenet", "samples:medical", "samples:natural")  # under those keys
_SUFFIX = re.compile(
    r"\.(csv|tsv|txt|ya?ml|json|parquet|xlsx|safetensors|onnx|ckpt|pth?|bin|np[yz]|h5|pkl|dcm|dicom|nii|gz|zip|tar|"
    r"png|jpe?g|tiff?|bmp|webp|jp2|gif|db|sqlite|ipynb|py|sh|log)(#\d+)?$",
    re.IGNORECASE,
)


class Hidden:
    """Replaces paths by "path 1", "path 2", ... in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def value(self, value: Any, key: str = "") -> Any:
        """A value of a config or of another file as it may be shown; containers are followed.

        The names of the embedded images and of classes stay; a string with a slash, the ending of
        a file, an address, or of a key that names a file, a folder or a person does not.
        """
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(one, str(name)) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one, key) for one in value]
        if not isinstance(value, str) or not value or key == "class_path":
            return value
        named = key in _KEYS and value not in _NO_PLACES
        return self._number(value) if named or _is_place(value) else self.text(value)

    def text(self, text: str) -> str:
        """Words with the places in them replaced."""
        return re.sub(r"\S+", lambda found: self._number(found[0]) if _is_place(found[0]) else found[0], text)

    def _number(self, place: str) -> str:
        return f"(path {self._numbers.setdefault(place, len(self._numbers) + 1)})"


def _is_place(text: str) -> bool:
    if not any(character.isalnum() for character in text):
        return False
    bare = text.strip("()[]{},;:'\"")
    return re.search(r"[/\\]|\S@\S|^~", bare) is not None or _SUFFIX.search(bare) is not None
