"""Errors that a user can act on: each is one sentence that says where, what was found, and what to do."""


class SparsifyError(Exception):
    """Something the user can mend; the command line prints it as one sentence and exits with 1."""


class OptionError(SparsifyError):
    """An option, pattern or ratio that cannot be meant."""


class PipelineError(SparsifyError):
    """A pipeline that cannot be read, or whose passes do not fit each other."""


class TraceError(SparsifyError):
    """A model that could not be turned into a program."""


class VerifyError(SparsifyError):
    """A program that is not well formed; the message shows the lines around the broken one."""


class LawError(SparsifyError):
    """A pass that moved what its kind must not move."""


class DataError(SparsifyError):
    """Text, a file or a model folder that is missing, empty, damaged or foreign."""


class ExportError(SparsifyError):
    """A program that a format cannot hold, or an export that did not read back the same."""


class KernelError(SparsifyError):
    """The compiled kernels are missing, foreign, or refuse what they were given."""


def reason_of(error: BaseException) -> str:
    """The first line of what another library says, or the name of its error when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
