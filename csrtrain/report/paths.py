"""What names a place on someone's machine, and is replaced by a number on the page: the same place, the same number."""

import re
from collections.abc import Mapping
from typing import Any

from csrtrain.runs.places import is_place


class Hidden:
    """Replaces paths by "path 1", "path 2", ... in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def value(self, value: Any, key: str = "") -> Any:
        """A value of a config or of another file as it may be shown; containers are followed."""
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(one, str(name)) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one, key) for one in value]
        if not isinstance(value, str) or key == "class_path":
            return value
        return self._number(value) if is_place(value, key) else self.text(value)

    def text(self, text: str) -> str:
        """Words with the places in them replaced."""
        return re.sub(r"\S+", lambda found: self._number(found[0]) if is_place(found[0]) else found[0], text)

    def _number(self, place: str) -> str:
        return f"(path {self._numbers.setdefault(place, len(self._numbers) + 1)})"
