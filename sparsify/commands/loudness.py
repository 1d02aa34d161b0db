"""How much the command line says: `--quiet` errors alone, `--verbose` what each step did as well.

What a verb is asked to print (`show`, `passes`, `recipes`, `schema`, the text of `generate`) always comes.
"""

import logging
from typing import Annotated

import typer
from rich.console import Console

from sparsify.errors import OptionError

console = Console()  # for what is said along the way; silent with --quiet
answer = Console()  # for what was asked for

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print what every step did and took.")
]


def set_loudness(context: typer.Context, quiet: bool, verbose: bool) -> None:
    """Let the console and the log `sparsify` say as much as is wanted, until the verb has ended.

    Raises OptionError where both are wanted.
    """
    if quiet and verbose:
        raise OptionError("--quiet and --verbose exclude each other; give one of them")
    log = logging.getLogger("sparsify")
    before, handler = log.level, logging.StreamHandler()

    def restore() -> None:
        console.quiet = False
        log.setLevel(before)
        log.removeHandler(handler)

    context.call_on_close(restore)
    console.quiet = quiet
    if quiet:
        log.setLevel(logging.ERROR)
    if verbose:
        log.setLevel(logging.DEBUG)
        log.addHandler(handler)
