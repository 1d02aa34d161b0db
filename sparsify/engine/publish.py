"""A finished result put into the folder its run worked in, by renames: what stands there is always whole.

exported    everything is written, in the folder of work
earlier     what an earlier run wrote is moved out of the way, into the folder of work
placing     `exported` under its other name: nothing earlier is left, what is new moves in
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from sparsify.disk.files import forget, refusals

_EXPORTED, _EARLIER, _PLACING = "exported", "earlier", "placing"


def publish(
    work: Path, out: Path, write: Callable[[Path], None], replaced: Iterable[str], last: str
) -> None:
    """Have `write` fill a folder in `work`, move its entries into `out`, `last` the last, and forget `work`.

    What is called one of `replaced` in `out` makes room, once all is written. After a kill the same call
    goes on where it was. Raises DataError when the disk refuses something; until all is written `out` is
    as it was.
    """
    placing = work / _PLACING
    if not placing.is_dir():
        exported = work / _EXPORTED
        forget(exported)
        with refusals(out):
            exported.mkdir()
        write(exported)
        with refusals(out):
            _move(out, work / _EARLIER, [name for name in replaced if (out / name).exists()])
            exported.rename(placing)
    with refusals(out):
        names = sorted(path.name for path in placing.iterdir())
        _move(placing, out, sorted(names, key=lambda name: name == last))
    forget(work)


def publishing(work: Path) -> bool:
    """Whether a kill came while a whole result was moving into its place."""
    return (work / _PLACING).is_dir()


def abandon(work: Path, out: Path) -> None:
    """Forget an interrupted run; what it had moved out of the way comes back where nothing stands."""
    earlier = work / _EARLIER
    if earlier.is_dir() and not publishing(work):
        with refusals(out):
            _move(earlier, out, [p.name for p in earlier.iterdir() if not (out / p.name).exists()])
    forget(work)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        (source / name).rename(target / name)
