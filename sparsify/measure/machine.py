"""What a figure was measured on: the processor and the versions that matter."""

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "onnxruntime", "transformers", "onnx", "sparsify-fx")
# Instruction sets that decide how fast matrix products run, as the kernel spells them.
_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


def machine() -> dict[str, str]:
    """The processor, its cores and instruction sets, and the versions of what runs on it."""
    facts = _processor()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": str(_cores()),
        "instructions": " ".join(sets(facts.get("flags") or facts.get("Features") or "")),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def sets(flags: str) -> list[str]:
    """The instruction sets among a processor's flags that matter for matrix products."""
    present = set(flags.split())
    return [name for name in _SETS if name in present]


def machine_line(facts: dict[str, str]) -> str:
    """The machine as one line: `AMD EPYC, 2 cores, avx2, torch 2.13.0, ...`."""
    parts = [facts["cpu"], f"{facts['cores']} cores", facts["instructions"]]
    parts += [f"{name} {facts[name]}" for name in ("python", *PACKAGES) if facts[name]]
    return ", ".join(part for part in parts if part)


def _processor() -> dict[str, str]:
    """The first block of the kernel's list of processors; empty where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    """Cores this process may use, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
