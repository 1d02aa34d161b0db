"""The grammar of pipelines: `a | b{key=value list=x,y nested=c{key=value}}` to a tree and back to errors."""

import re
from dataclasses import dataclass, field

from sparsify.errors import PipelineError, shortened

# More than any pipeline that is meant.
_PASSES, _DEPTH, _CHARACTERS, _WORD = 1000, 20, 1_000_000, 1000
_TOKEN = re.compile(r"\s+|[{}|=,]|[^\s{}|=,]+")


@dataclass(frozen=True)
class Call:
    """A name with options; a bare word is a call without options."""

    name: str
    options: dict[str, tuple["Call", ...]] = field(default_factory=dict)
    braced: bool = False


def parse_calls(text: str) -> list[Call]:
    """The calls of a pipeline text in order.

    Raises PipelineError with the position at which the text could not be read.
    """
    if len(text) > _CHARACTERS:
        raise PipelineError(
            f"a pipeline text of {len(text):,} characters is too long; at most {_CHARACTERS:,}"
        )
    reader = _Reader(text)
    calls = [reader.call()]
    while reader.peek() == "|":
        reader.take()
        calls.append(reader.call())
        if len(calls) > _PASSES:
            raise reader.error(f"more than {_PASSES} passes")
    if reader.peek():
        raise reader.error(f"unexpected '{reader.peek()}'")
    return calls


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        found = [(m.group(), m.start()) for m in _TOKEN.finditer(text)]
        self._tokens = [(token, at) for token, at in found if not token.isspace()]
        self._next = 0
        self._depth = 0

    def peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self._next += 1
        return token

    def error(self, what: str) -> PipelineError:
        at = self._tokens[self._next][1] if self._next < len(self._tokens) else len(self._text)
        return PipelineError(f"pipeline text, column {at + 1}: {what} in '{shortened(self._text)}'")

    def call(self) -> Call:
        name = self._word("a name")
        if self.peek() != "{":
            return Call(name)
        self.take()
        self._depth += 1
        if self._depth > _DEPTH:
            raise self.error(f"nested deeper than {_DEPTH}")
        options: dict[str, tuple[Call, ...]] = {}
        while self.peek() != "}":
            key = self._word("an option or '}'")
            if key in options:
                raise self.error(f"option '{key}' given twice")
            if self.take() != "=":
                self._next -= 1
                raise self.error(f"expected '=' after '{key}'")
            options[key] = self._values()
        self.take()
        self._depth -= 1
        return Call(name, options, braced=True)

    def _values(self) -> tuple[Call, ...]:
        values = [self.call()]
        while self.peek() == ",":
            self.take()
            values.append(self.call())
        return tuple(values)

    def _word(self, wanted: str) -> str:
        if self.peek() in ("", "{", "}", "|", "=", ","):
            raise self.error(f"expected {wanted}")
        if len(self.peek()) > _WORD:
            raise self.error(f"a word of more than {_WORD} characters")
        return self.take()
