"""What names a place on someone's machine, or a person, and so does not leave it: neither to wandb nor in a report."""

import re

# Keys of a config whose values name files, folders or people, whatever they look like.
_KEYS = frozenset(
    ("root", "authentic", "manifest", "triplets", "labels", "cache_dir", "weights", "config", "ckpt_path", "run_dir")
    + ("default_root_dir", "root_dir", "save_dir", "sub_dir", "log_dir", "dir", "dirpath", "path", "filename")
    + ("entity", "host", "hostname", "user", "username")
)
_NO_PLACES = ("none", "imagenet", "samples:medical", "samples:natural")  # under those keys
_SUFFIX = re.compile(
    r"\.(csv|tsv|txt|lst|ya?ml|json|parquet|xlsx|safetensors|onnx|ckpt|pth?|bin|np[yz]|h5|pkl|dcm|dicom|nii|gz|zip|tar|"
    r"png|jpe?g|tiff?|bmp|webp|jp2|gif|db|sqlite|ipynb|py|sh|log)(#\d+)?$",
    re.IGNORECASE,
)


def is_place(text: str, key: str = "") -> bool:
    """Whether a text names a file, a folder, an address or a person.

    The names of the embedded images and of classes do not; a text with a slash, the ending of a file, or an address
    does, and so does every other one under a key that names a file, a folder or a person.

    Args:
        text: a value of a config, or a word of a sentence.
        key: its last key in the config; "" for none.
    """
    if key == "class_path" or not text:
        return False
    if key in _KEYS and text not in _NO_PLACES:
        return True
    if not any(character.isalnum() for character in text):
        return False
    bare = text.strip("()[]{},;:'\"")
    return re.search(r"[/\\]|\S@\S|^~", bare) is not None or _SUFFIX.search(bare) is not None
