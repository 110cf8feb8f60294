"""What a run was computed with: versions, hardware and precision; nothing that names a machine, a person or a place."""

import importlib.metadata
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from csrtrain.files import write_atomically


def describe(trainer: Trainer) -> dict[str, Any]:
    """The content of `environment.json`: plain data, without host name, user name and paths.

    Keys:
        python, system: versions, for example `3.12.4`, `Linux x86_64`.
        packages: version of each package that csrtrain needs, where it is installed.
        cpu, cpu_cores, memory_gb: of this machine; cores that this process may use.
        accelerator: `cpu`, `cuda`, ...
        devices: name of each device of this node; of a CPU nothing.
        cuda, cudnn: versions, or None.
        precision: of the trainer. matmul_precision: of PyTorch's float32 products. deterministic: its setting.
        strategy, nodes, world_size: how the work is shared; world_size counts the processes of all nodes.
    """
    kind = trainer.strategy.root_device.type
    cuda, cudnn = kind == "cuda", torch.backends.cudnn
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": _packages(),
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "accelerator": kind,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "precision": str(trainer.precision),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "strategy": type(trainer.strategy).__name__,
        "nodes": trainer.num_nodes,
        "world_size": trainer.world_size,
    }


def keep(run_dir: Path, described: dict[str, Any]) -> None:
    """Write `environment.json` at the first start, `environment.resume-TIME.json` at a later one that differs."""
    path = run_dir / "environment.json"
    content = (json.dumps(described, indent=2) + "\n").encode()
    if path.exists():
        if path.read_bytes() == content:
            return
        path = run_dir / f"environment.resume-{time.strftime('%Y%m%dT%H%M%S')}.json"
    write_atomically(path, content)


def _packages() -> dict[str, str]:
    """csrtrain and what its metadata require, extras left out."""
    names = ["csrtrain"]
    for requirement in importlib.metadata.requires("csrtrain") or []:
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        if found and "extra ==" not in requirement:
            names.append(found[0])
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor()
