r"""The Corefile's syntax: text into server blocks of directives, with file and line kept on every word.

Knows quotes, comments, braces, snippets, imports and environment variables. Must not know any plugin.
Called by `corefile`. It reads files, because `import` does; everything else is a function of the text.

The dialect, as operators know it from CoreDNS:

    word "quoted word, \" is a quote"   # comment to the end of the line
    zone zone:port, cidr {               keys of a server block; a trailing comma continues on the next line
        directive argument {$VARIABLE} {
            option argument
        }
        import file/*.glob               or the name of a snippet
    }
    (snippet) { … }

A file with one server block may leave its braces away. A backslash before the end of a line joins it with the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

MAX_IMPORT_DEPTH = 20
"""Deeper nesting is taken for a cycle."""
MAX_NESTING = 50
"""Braces within braces. No plugin has more than two levels; what imports itself adds one each time."""
MAX_WORDS = 200_000
"""Imported words, all together; snippets that import one another several times grow without bound otherwise."""

_VARIABLE = re.compile(r"\{\$([^{}$%\s]+)\}|\{%([^{}$%\s]+)%\}")
_NEWLINE = re.compile(r"\r?\n")
_GLOB = re.compile(r"[*?\[]")


class CorefileProblem(NamedTuple):
    """One thing wrong in a Corefile, worded for who has to correct it."""

    file: str
    line: int
    """From 1; 0 where the file as a whole is meant."""
    text: str
    """What is wrong, with the word it is about."""
    remedy: str
    """What to write instead."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}; {self.remedy}" if self.remedy else f"{place}: {self.text}"


class Invalid(Exception):  # noqa: N818 - a signal between the parsers, never seen outside
    """A word that cannot stand where it stands. Becomes a CorefileProblem."""

    def __init__(self, at: Token, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.problem = CorefileProblem(at.file, at.line, text, remedy)


class Token(NamedTuple):
    """A word and where it stands."""

    text: str
    file: str
    line: int
    row: int
    """The logical line, which ends a directive: continuation lines share one, imported words have their own."""
    end_row: int
    """The logical line of its last character: quoted words may span several."""
    quoted: bool = False
    unclosed: bool = False
    """Its quote was still open where the text ends."""

    @property
    def opens(self) -> bool:
        """Whether it is an opening brace."""
        return self.text == "{" and not self.quoted

    @property
    def closes(self) -> bool:
        """Whether it is a closing brace."""
        return self.text == "}" and not self.quoted


class Directive(msgspec.Struct, frozen=True):
    """A line of a block: a plugin, or an option within one."""

    name: Token
    args: tuple[Token, ...]
    body: tuple[Directive, ...] | None = None
    """The lines between its braces; None without braces."""

    def words(self) -> tuple[Token, ...]:
        """Arguments, then every word of the body in order: for directives whose braces only spread words over lines."""
        found = list(self.args)
        for line in self.body or ():
            found += (line.name, *line.words())
        return tuple(found)


class Block(msgspec.Struct, frozen=True):
    """A server block before its keys and directives are understood."""

    keys: tuple[Token, ...]
    directives: tuple[Directive, ...]


class Syntax(msgspec.Struct, frozen=True):
    """A Corefile as written."""

    blocks: tuple[Block, ...]
    files: tuple[str, ...]
    """Every file read, the Corefile's imports included: what a reload has to look at."""
    problems: tuple[CorefileProblem, ...]


def tokenize(text: str, file: str) -> list[Token]:
    """The words of `text`. Never fails: an unclosed quote ends with its line, and its word says so."""
    tokens: list[Token] = []
    word: list[str] = []
    line = row = 1
    start = start_row = 1
    at, size = 0, len(text)

    def finish(*, quoted: bool = False, unclosed: bool = False) -> None:
        if word or quoted:
            tokens.append(Token("".join(word), file, start, start_row, row, quoted, unclosed))
            word.clear()

    while at < size:
        char = text[at]
        at += 1
        if char == "\\" and (end := _NEWLINE.match(text, at)):
            finish()
            at = end.end()
            line += 1
        elif char.isspace():
            finish()
            if char == "\n":
                line += 1
                row += 1
        elif char == "#":
            finish()
            newline = text.find("\n", at)
            at = size if newline < 0 else newline
        elif char == '"' and not word:
            start, start_row, opening = line, row, at
            while at < size and text[at] != '"':
                if text[at] == "\\" and text[at + 1 : at + 2] == '"':
                    at += 1
                elif text[at] == "\n":
                    line += 1
                    row += 1
                word.append(text[at])
                at += 1
            if at == size:
                # What follows is read as if the quote ended with its line, so that other problems are found, too.
                at = newline if (newline := text.find("\n", opening)) >= 0 else size
                word[:], line, row = text[opening:at], start, start_row
                finish(quoted=True, unclosed=True)
                continue
            at += 1
            finish(quoted=True)
        else:
            if not word:
                start, start_row = line, row
            word.append(char)
    finish()
    return tokens


def expand_variables(text: str, env: Mapping[str, str]) -> str:
    """`text` with `{$NAME}`, `{$NAME:DEFAULT}` and `{%NAME%}` replaced; an unset variable without one is empty."""

    def value(match: re.Match[str]) -> str:
        name, _, default = (match[1] or match[2]).partition(":")
        return env.get(name, default)

    return _VARIABLE.sub(value, text) if "{" in text else text


def parse(text: str, file: str, base: Path, env: Mapping[str, str]) -> Syntax:
    """The server blocks of `text`, every problem found on the way.

    Args:
        text: the Corefile.
        file: its name, for messages.
        base: the directory relative imports start from.
        env: the variables `{$NAME}` stands for.
    """
    return _Parser(text, file, base, env).parse()


class _Parser:
    """Recursive descent over a token list; imports splice tokens in place of themselves."""

    def __init__(self, text: str, file: str, base: Path, env: Mapping[str, str]) -> None:
        self._env = env
        self._bases = {file: base}
        self._problems: list[CorefileProblem] = []
        self._tokens = self._words(text, file)
        self._rows = self._tokens[-1].end_row if self._tokens else 0
        self._splices: list[int] = []
        """For each import the cursor is within: the number of words that follow it."""
        self._spliced = 0
        self._nesting = 0
        self._at = 0
        self._snippets: dict[str, list[Token]] = {}
        self._files: list[str] = []

    def parse(self) -> Syntax:
        blocks: list[Block] = []
        while (block := self._block()) is not None:
            if block.keys:
                blocks.append(block)
        return Syntax(tuple(blocks), tuple(dict.fromkeys(self._files)), tuple(self._problems))

    def _words(self, text: str, file: str) -> list[Token]:
        words = tokenize(text, file)
        for word in words:
            if word.unclosed:
                self._complain(word, "a quote is never closed", "add the missing '\"'")
        return words

    # -- cursor

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _same_line(self, after: Token) -> bool:
        """Whether the next word stands on the line `after` ends on."""
        token = self._peek()
        return token is not None and token.row == after.end_row

    def _complain(self, at: Token, text: str, remedy: str) -> None:
        self._problems.append(CorefileProblem(at.file, at.line, text, remedy))

    def _expanded(self, token: Token) -> Token:
        return token._replace(text=expand_variables(token.text, self._env))

    # -- grammar

    def _block(self) -> Block | None:
        """The next server block; one without keys where a snippet or an empty import stood; None at the end."""
        keys: list[Token] = []
        opened = False
        continues = False
        last: Token | None = None
        while (token := self._peek()) is not None:
            if last is not None and not continues and not self._same_line(last):
                break
            self._next()
            if token.opens:
                opened = True
                last = token
                break
            if token.closes:
                self._complain(token, "unexpected '}'", "no block is open here: remove it")
                return Block((), ())
            if token.text == "import" and not token.quoted and not keys:
                self._import(token)
                return Block((), ())
            last = token
            text = self._expanded(token).text
            if token.text.endswith("{") and not token.quoted:
                self._complain(token, f"'{token.text}' has no space before its brace", f"write '{text[:-1]} {{'")
                text, opened = text[:-1], True
            continues = text.endswith(",")
            keys += [token._replace(text=key) for key in text.split(",") if key]
            if opened:
                break
        if last is None:
            return None
        if not keys:
            if not opened:
                return Block((), ())
            self._complain(last, "a server block without a zone", "write a zone before '{', for instance .:53")
        name = keys[0].text if keys else ""
        if len(keys) == 1 and name.startswith("(") and name.endswith(")"):
            self._snippet(keys[0], name[1:-1], opened=opened)
            return Block((), ())
        directives = self._lines(last if opened else None)
        return Block(tuple(keys), directives)

    def _lines(self, opening: Token | None) -> tuple[Directive, ...]:
        """Directives up to the closing brace of `opening`, or to the end where there is none."""
        if opening is not None and self._nesting >= MAX_NESTING:
            self._complain(opening, f"more than {MAX_NESTING} braces within one another", "close those before")
            self._skip_block()
            return ()
        self._nesting += 1
        try:
            return self._directives(opening)
        finally:
            self._nesting -= 1

    def _directives(self, opening: Token | None) -> tuple[Directive, ...]:
        found: list[Directive] = []
        while (token := self._peek()) is not None:
            self._next()
            if token.closes:
                if opening is not None:
                    return tuple(found)
                self._complain(token, "unexpected '}'", "no block is open here: remove it")
            elif token.opens:
                self._complain(token, "unexpected '{'", "put the brace at the end of the line it belongs to")
                self._lines(token)
            elif token.text == "import" and not token.quoted:
                self._import(token)
            else:
                found.append(self._line(token))
        if opening is not None:
            self._complain(opening, "'{' is never closed", "add the missing '}'")
        return tuple(found)

    def _skip_block(self) -> None:
        """Pass over everything up to the brace that closes the one just read."""
        open_braces = 1
        while open_braces and self._peek() is not None:
            token = self._next()
            open_braces += token.opens - token.closes

    def _line(self, name: Token) -> Directive:
        args: list[Token] = []
        body: tuple[Directive, ...] | None = None
        last = name
        while self._same_line(last):
            token = self._tokens[self._at]
            if token.closes:
                break
            self._next()
            if token.opens:
                body = self._lines(token)
                break
            args.append(self._expanded(token))
            last = token
        if body is None and not args and name.text.endswith("{") and not name.quoted:
            self._complain(name, f"'{name.text}' has no space before its brace", f"write '{name.text[:-1]} {{'")
            name = name._replace(text=name.text[:-1])
            body = self._lines(name)
        return Directive(self._expanded(name), tuple(args), body)

    # -- what import puts in place

    def _snippet(self, at: Token, name: str, *, opened: bool) -> None:
        """Keep the words of a snippet's body for `import`."""
        if not opened:
            self._complain(at, f"snippet '({name})' has no body", "write it as (name) { … }")
            return
        body: list[Token] = []
        nesting = 1
        while (token := self._peek()) is not None:
            self._next()
            nesting += token.opens - token.closes
            if nesting == 0:
                break
            body.append(token)
        else:
            self._complain(at, f"snippet '({name})' is never closed", "add the missing '}'")
        if name in self._snippets:
            self._complain(at, f"snippet '({name})' is defined twice", "give one of them another name")
        self._snippets.setdefault(name, body)

    def _import(self, at: Token) -> None:
        """Put the words of a snippet or of files where the import stands."""
        args: list[Token] = []
        while self._same_line(args[-1] if args else at):
            token = self._tokens[self._at]
            if token.closes:
                break
            args.append(self._expanded(self._next()))
        if len(args) != 1:
            self._complain(at, f"import takes one argument, found {len(args)}", "name one file, pattern or snippet")
            return
        pattern = args[0].text
        remaining = len(self._tokens) - self._at
        self._splices = [rest for rest in self._splices if rest <= remaining]
        if len(self._splices) >= MAX_IMPORT_DEPTH:
            self._complain(args[0], f"import '{pattern}' is nested too deeply", "a file or snippet imports itself")
            return
        words = self._snippets.get(pattern)
        if words is None:
            words = self._read(args[0])
        self._spliced += len(words)
        if self._spliced > MAX_WORDS:
            self._complain(args[0], f"import '{pattern}' makes the configuration too large", "import it less often")
            return
        self._splices.append(remaining)
        shifted = [t._replace(row=t.row + self._rows, end_row=t.end_row + self._rows) for t in words]
        self._rows = max((t.end_row for t in shifted), default=self._rows)
        self._tokens[: self._at] = shifted
        self._at = 0

    def _read(self, pattern: Token) -> list[Token]:
        """The words of the files `pattern` names, in the order of their names."""
        base = self._bases[pattern.file]
        path = base / pattern.text
        if not _GLOB.search(pattern.text):
            paths = [path]
        else:
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            try:
                paths = sorted(p for p in anchor.glob(str(path.relative_to(anchor))) if p.is_file())
            except (ValueError, OSError) as error:
                self._complain(pattern, f"cannot expand '{pattern.text}': {error}", "correct the pattern")
                return []
            # A pattern may match nothing: an optional ConfigMap that is not there.
            paths = [p for p in paths if not p.name.startswith(".")]
        words: list[Token] = []
        rows = 0
        for found in paths:
            name = str(found)
            try:
                text = found.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                known = ", ".join(sorted(self._snippets)) or "none"
                self._complain(
                    pattern, f"cannot import '{pattern.text}': {reason}", f"name a readable file or a snippet ({known})"
                )
                continue
            self._files.append(name)
            self._bases[name] = found.parent
            words += [t._replace(row=t.row + rows, end_row=t.end_row + rows) for t in self._words(text, name)]
            rows = words[-1].end_row if words else 0
        return words
