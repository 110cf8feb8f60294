"""What is done to sound files: to bytes, to the header of a safetensors file, to the cells of a table, and to the file
itself (folders, pipes, devices, links). Every function takes a generator and gives the changed content and a word."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

_RAW = "\ue000raw"  # stands in JSON text for text that json.dumps would not write
_HUGE = (2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**12, 10**18)
_PATHS = (
    *(
        "/dev/zero",
        "/dev/stdin",
        "/dev/fd/0",
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "a/../" * 300 + "a.png",
        ".",
    ),
    *(
        "..",
        "/",
        "~",
        "~root",
        "~nobody/x",
        "~\0",
        "a\0b.png",
        "\0",
        "x" * 5000,
        "/" * 5000,
        "https://example.com/a.png",
    ),
    *("http://127.0.0.1:9/a.png", "s3://bucket/a.png", "file:///etc/passwd", "\\\\host\\share\\a.png", "a.png#-1"),
    *(
        "a.png#99999999999999999999",
        "#0",
        "%s%n",
        "$(touch owned)",
        "`id`",
        "|id",
        "con",
        "é" * 300,
        "\u202egnp.a",
        "\x1b[2J",
    ),
    *(
        "/proc/self/mem",
        "/proc/self/environ",
        "/dev/random",
        "/dev/tty",
        "/proc/self/fd/1",
        "-",
        "--help",
        "{0.__class__}",
    ),
)
_NAMES = (
    *(
        "hf-hub:timm/resnet18.a1_in1k",
        "local-dir:/tmp",
        "timm/resnet18",
        "hf_hub:x/y",
        "https://example.com/x",
        "os.system",
    ),
    *(
        "resnet18.",
        "resnet18.none",
        ".",
        "",
        "test_resnet.safetensors",
        "RESNET18",
        "test_resnet\0",
        "x" * 100_000,
        "vit" * 60,
    ),
    *(
        "vit_7b_patch16_dinov3",
        "eva02_enormous_patch14_clip_224",
        "vit_gigantic_patch14_224",
        "../test_resnet",
        "timm.create_model",
    ),
)


# Bytes


def changed_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """One to three of: flipped bits, an end cut off, parts moved, doubled, taken out, or overwritten."""
    words = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice((_flip, _flip, _cut, _splice, _take_out, _double, _overwrite, _huge, _append))
        content = change(rng, content)
        words.append(change.__name__.strip("_").replace("_", " "))
    return content[: 2**22], f"bytes: {words[0]}"


def _place(rng: random.Random, content: bytes) -> int:
    """Mostly near an end, where headers and directories are."""
    size = max(1, len(content))
    near = rng.randrange(min(size, 4000))
    return rng.choice((near, near, size - 1 - near, rng.randrange(size)))


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if content else 0):
        changed[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice((0, 1, 7, 8, 9, _place(rng, content), _place(rng, content)))]


def _splice(rng: random.Random, content: bytes) -> bytes:
    start, to = _place(rng, content), _place(rng, content)
    part = content[start : start + rng.choice((1, 8, 100, 5000))]
    return content[:to] + part + content[to:]


def _take_out(rng: random.Random, content: bytes) -> bytes:
    start = _place(rng, content)
    return content[:start] + content[start + rng.choice((1, 4, 100, 5000)) :]


def _double(rng: random.Random, content: bytes) -> bytes:
    return content + content[: rng.choice((len(content), len(content) // 2, 100))]


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    start, size = _place(rng, content), rng.choice((1, 8, 64, 1000))
    return content[:start] + rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size))) + content[start + size :]


def _huge(rng: random.Random, content: bytes) -> bytes:
    start = rng.choice((0, 0, _place(rng, content)))
    number = struct.pack("<Q", rng.choice(_HUGE))
    return content[:start] + number + content[start + 8 :]


def _append(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0", b"PK\x03\x04", bytes(4096), rng.randbytes(100)))


# Headers of safetensors files


def changed_safetensors(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The bundle's own header, what stands beside it on the tensors, or the text of both, changed."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    own = json.loads(header["__metadata__"]["csrtrain"])
    word = ""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change: Callable[..., tuple[Any, str]] = rng.choice((_own, _own, _backbone, _backbone, _tensor, _names, _meta))
        if change in (_own, _backbone):
            own, done = change(rng, own)
        elif change is _meta:
            header, done = _changed_json(rng, header)
        else:
            header, data, done = change(rng, header, data)
        word = word or done
        if not isinstance(own, dict) or not isinstance(header, dict):
            break
    text = _dumped(rng, own)
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["csrtrain"] = text
    written = _dumped(rng, header).encode("utf-8", "surrogatepass")
    size = len(written) if rng.random() < 0.97 else rng.choice((len(written) + 1, len(written) - 1, *_HUGE))
    return struct.pack("<Q", size % 2**64) + written + data, word


def _own(rng: random.Random, own: dict[str, Any]) -> tuple[Any, str]:
    """Anything in the bundle's header."""
    if rng.random() < 0.1:
        own["kind"] = rng.choice(("backbone", "no_reference", "full_reference", "", None, 1, []))
        return own, "header: another kind"
    return _changed_json(rng, own)


def _backbone(rng: random.Random, own: dict[str, Any]) -> tuple[Any, str]:
    """The arguments of a network, all of one kind, so that later checks are reached."""
    try:
        arguments = own["backbone"] if "backbone" in own else rng.choice(own["backbones"])["arguments"]
        channels = rng.choice((0, 1, 2, 3, 64, 1000, 50_000, -1, True, 1.0, rng.choice(_HUGE), "1", None))
        done = rng.choice(("a name", "channels", "normalisation"))
        if done == "a name":
            arguments["name"] = rng.choice((*_NAMES, *rng.sample(timm.list_models(), 8)))
        elif done == "channels":
            arguments["channels"] = channels
            if rng.random() < 0.7 and isinstance(channels, int) and 0 <= channels <= 50_000:
                arguments["mean"], arguments["std"] = [0.5] * int(channels), [0.5] * int(channels)
                own["input"].update({key: arguments[key] for key in ("channels", "mean", "std")})
        else:
            value = rng.choice((0.0, -1.0, 1e-45, 1e38, 1e308, float("inf"), float("nan"), 1, "0.5", None, [0.5]))
            arguments[rng.choice(("mean", "std"))] = [value] * rng.choice((1, 1, 0, 2))
            if "mean" in own["input"]:
                own["input"].update({key: arguments[key] for key in ("mean", "std")})
        return own, f"network: {done}"
    except (KeyError, TypeError, IndexError, AttributeError):  # an earlier change took it away
        return _changed_json(rng, own)


def _changed_json(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """A node of a tree replaced, taken out, renamed, doubled or wrapped."""
    nodes = [(tree, key) for key in tree] if isinstance(tree, dict) else []
    for parent, key in nodes:  # grows while it is walked
        inner = parent[key]
        nodes += [
            (inner, k)
            for k in (inner if isinstance(inner, dict) else range(len(inner) if isinstance(inner, list) else 0))
        ]
    if not nodes or rng.random() < 0.02:
        return _hostile(rng), "JSON: another root"
    parent, key = rng.choice(nodes)
    done = rng.choice(("replaced", "replaced", "replaced", "taken out", "renamed", "doubled", "wrapped"))
    if done == "taken out":
        del parent[key]
    elif done == "renamed" and isinstance(parent, dict):
        parent[rng.choice((*_PATHS, "_target_", "class_path", "__class__", "", "\ud800"))] = parent.pop(key)
    elif done == "doubled":
        parent[key] = [parent[key]] * rng.choice((2, 3, 1000))
    elif done == "wrapped":
        parent[key] = rng.choice(
            ([parent[key]], {"a": parent[key]}, {"class_path": "os.system", "init_args": parent[key]})
        )
    else:
        parent[key] = _hostile(rng)
    return tree, f"JSON: {done}"


def _hostile(rng: random.Random) -> Any:
    """A value that no sound header has."""
    numbers = (
        0,
        1,
        -1,
        2,
        0.5,
        -0.5,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        True,
        False,
        10**400,
        -(2**63),
        *_HUGE,
    )
    texts = (*_PATHS, *_NAMES, "\ud800", "higher is better", "maps", "representations", "header", "full", "1e400")
    built: tuple[Any, ...] = (
        None,
        [],
        {},
        [[]],
        [None],
        [0.5] * 50_000,
        {"a": {}},
        [1.0, 0.5] * 100,
        {"class_path": "os.system"},
    )
    raw = (f"{_RAW}{rng.choice((20, 40, 500, 900, 5000, 200_000))}", f"{_RAW}-{rng.choice((500, 100_000))}")
    return rng.choice((rng.choice(numbers), rng.choice(texts), rng.choice(built), rng.choice(raw)))


def _dumped(rng: random.Random, tree: Any) -> str:
    """JSON text with what JSON should not have: NaN, depth, and names that stand twice."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    while (start := text.find(json.dumps(_RAW)[:-1])) >= 0 or (start := text.find(f'"{_RAW}')) >= 0:
        end = text.index('"', start + 1)
        depth = int(text[start:end].rpartition("raw")[2] or 0)
        deep = "[" * depth + "]" * depth if depth >= 0 else '{"a":' * -depth + "1" + "}" * -depth
        text = text[:start] + deep + text[end + 1 :]
    if rng.random() < 0.05 and isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        text = "{" + json.dumps(key) + ":" + rng.choice(("1", '"x"', "{}", "NaN")) + "," + text[1:]
    if rng.random() < 0.02:
        text = rng.choice(
            (text[: len(text) // 2], text + "}", " " * 100_000 + text, text.replace(":", "=", 1), "\ufeff" + text)
        )
    return text


def _tensor(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes, str]:
    """What the file says of a tensor."""
    names = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    if not names:
        return header, data, "tensors: none"
    name = rng.choice(names)
    done = rng.choice(("type", "shape", "offsets", "a swap", "empty", "values"))
    one = header[name]
    if done == "type":
        one["dtype"] = rng.choice(
            ("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0", "X", 1)
        )
    elif done == "shape":
        one["shape"] = rng.choice(
            ([2**62, 2**62], [2**40, 0], [-1], [], [1] * 1000, [1.5], ["1"], None, [2**63], [True], [[1]])
        )
    elif done == "offsets":
        low, high = rng.choice(
            ((0, 2**40), (-8, 8), (8, 0), (2**63, 2**63 + 8), (0, 0), (0, len(data)), (1.5, 2), (0,) * 2)
        )
        one["data_offsets"] = rng.choice(
            ([low, high], [low], {}, None, [low, high, 0], header[rng.choice(names)].get("data_offsets"))
        )
    elif done == "a swap":
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    elif done == "empty":  # a sound entry that takes no bytes: the rest must be refused, not filled in
        start = one.get("data_offsets") or [0, 0]
        one.update(shape=rng.choice(([0], [2**40, 0], [0, 2**62], [10**12, 0, 3])), data_offsets=[start[0], start[0]])
        if (
            isinstance(start, list)
            and len(start) == 2
            and all(isinstance(k, int) for k in start)
            and 0 <= start[0] < start[1]
        ):
            data = data[: start[0]] + data[start[1] :]
            for entry in header.values():
                spot = entry.get("data_offsets") if isinstance(entry, dict) else None
                if (
                    entry is not one
                    and isinstance(spot, list)
                    and len(spot) == 2
                    and all(isinstance(k, int) for k in spot)
                ):
                    entry["data_offsets"] = [k - (start[1] - start[0]) if k >= start[1] else k for k in spot]
    else:
        data = bytearray(data)  # type: ignore[assignment]
        for _ in range(rng.choice((1, 100))):
            place = rng.randrange(max(1, len(data) // 4)) * 4
            data[place : place + 4] = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", bytes(4)))[
                : len(data) - place
            ]  # type: ignore[index]
        data = bytes(data)
    return header, data, f"tensors: {done}"


def _names(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes, str]:
    """Names of tensors, or another one."""
    names = [name for name in header if name != "__metadata__"] or [""]
    name = rng.choice(names)
    new = rng.choice(
        (*_PATHS, "__class__", "network", "features", "", "\ud800", "x" * 10_000, "domain.looks", "weights.-1")
    )
    if rng.random() < 0.5 and name in header:
        header[new] = header.pop(name)
        return header, data, "tensors: a name"
    size = rng.choice((0, 4, 4096))
    header[new] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(data), len(data) + size]}
    return header, data + bytes(size), "tensors: one more"


def _meta() -> None:
    """Stands for a change of the whole header of the file."""


# Tables


def changed_table(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Cells, columns, rows, quotes, line ends and encodings."""
    rows = [line.split(",") for line in content.decode().split("\n") if line]
    word, end, encoding = "", "\n", "utf-8"
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        done = rng.choice(
            (*("a cell",) * 8, "a column out", "a column twice", "a name", "a row out", "a row twice", "short rows")
        )
        if rng.random() < 0.3:
            done = rng.choice(
                (
                    "many columns",
                    "many rows",
                    "blank lines",
                    "line ends",
                    "encoding",
                    "quotes",
                    "a long cell",
                    "NUL",
                    "wide row",
                )
            )
        row = rng.randrange(len(rows))
        place = rng.randrange(max(1, len(rows[row])))
        if done == "a cell" and rows[row]:
            rows[row][place] = _cell(rng)
        elif done == "a name" and rows[0]:
            rows[0][rng.randrange(len(rows[0]))] = rng.choice(
                ("mos", "dmos", "path", "", "split", "group", "type", "std", "level", "x", "\0")
            )
        elif done == "a column out":
            rows = [line[:place] + line[place + 1 :] for line in rows]
        elif done == "a column twice":
            rows = [[*line, line[place] if place < len(line) else ""] for line in rows]
        elif done == "a row out" and len(rows) > 1:
            del rows[row]
        elif done == "a row twice":
            rows += [list(rows[row])] * rng.choice((1, 10))
        elif done == "short rows":
            rows = [rows[0], *(line[: rng.randrange(len(line) + 1)] for line in rows[1:])]
        elif done == "many columns":
            rows[0] = [*rows[0], *(f"c{k}" for k in range(rng.choice((500, 5000, 200_000))))]
        elif done == "many rows" and len(rows) > 1 and len(rows) * len(rows[0]) < 1000:
            rows += [list(line) for line in rows[1:]] * rng.choice((10, 300))
        elif done == "blank lines":
            rows[row:row] = [[""]] * rng.choice((1, 1000, 30_000))
        elif done == "line ends":
            end = rng.choice(("\r", "\r\n", "\n\r", "\x0b", "\u2028", "", "\x85"))
        elif done == "encoding":
            encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7", "cp037"))
        elif done == "quotes" and rows[row]:
            rows[row][place] = rng.choice(
                ('"', '""', '"a""', '"\n' * 1000, '"' + "a\n" * 100_000, f'"{rows[row][place]}"x', "'")
            )
        elif done == "a long cell" and rows[row]:
            rows[row][place] = rng.choice(("a", "9", '"', "../", "\0", "é")) * rng.choice(
                (300, 5000, 131_073, 1_000_000)
            )
        elif done == "NUL" and rows[row]:
            rows[row][place] = rows[row][place] + "\0" * rng.choice((1, 1000))
        elif done == "wide row" and len(rows) < 100:
            rows[row] = rows[row] * rng.choice((2, 1000, 20_000))
        word = word or done
        while sum(map(len, rows)) > 300_000 or sum(len(cell) for line in rows for cell in line) > 2**22:
            rows = rows[: len(rows) // 2] or [["path"]]
    text = end.join(",".join(line) for line in rows)
    return text.encode(encoding, "replace")[: 2**22], f"table: {word}"


def _cell(rng: random.Random) -> str:
    numbers = (
        *(
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1e400",
            "-1e400",
            "1e-400",
            "1_000",
            "0x10",
            "１",
            "٣",
            "1,5",
            "+5",
            " 5 ",
            "--5",
            "1e",
        ),
        *(
            "",
            " ",
            "9" * 400,
            "9" * 5000,
            "0." + "0" * 5000 + "1",
            "None",
            "true",
            "=1+1",
            "=cmd|'/c calc'!A1",
            "2.0",
            "-0.0",
        ),
    )
    return rng.choice((*numbers, *_PATHS, "train", "test", "trian", "#", "a.png", "\ufeff", "\u200b"))


# Files that are none


def special_file(rng: random.Random, folder: Path, suffix: str, content: bytes) -> tuple[str, str]:
    """A path to what is no regular file, or to none; and the word."""
    path = folder / f"case{suffix}"
    kind = rng.choice(
        (
            "folder",
            "pipe",
            "link to itself",
            "link to nothing",
            "link to zeros",
            "device",
            "address",
            "NUL",
            "long",
            "sparse",
            "link",
        )
    )
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link to nothing":
        path.symlink_to(folder / "none")
    elif kind == "link to zeros":
        path.symlink_to("/dev/zero")
    elif kind == "device":
        return rng.choice(("/dev/zero", "/dev/stdin", "/dev/full", "/dev/tty", "/dev/random")), "file: device"
    elif kind == "address":
        return rng.choice(("https", "http", "s3", "ftp", "file")) + f"://127.0.0.1:9/case{suffix}", "file: address"
    elif kind == "NUL":
        return f"{folder}/ca\0se{suffix}", "file: NUL"
    elif kind == "long":
        return f"{folder}/" + "case" * 2000 + suffix, "file: long name"
    elif kind == "sparse":
        path.write_bytes(content[: rng.randrange(len(content))])
        os.truncate(path, 2**36)
    else:
        (folder / "target").write_bytes(content)
        path.symlink_to(folder / "target")
    return str(path), f"file: {kind}"
