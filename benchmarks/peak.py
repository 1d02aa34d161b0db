"""Peak memory of the process that asks."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most resident memory this process has had, in bytes.

    Linux hands `ru_maxrss` on to programs that a process starts, so that a small one would tell the peak
    of what started it; `VmHWM` begins anew.
    """
    if _STATUS.is_file():
        lines = _STATUS.read_text(encoding="ascii", errors="ignore").splitlines()
        found = next((line for line in lines if line.startswith("VmHWM")), "")
        if found:
            return int(found.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
