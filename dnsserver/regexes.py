"""Regular expressions in Go's notation (RE2), as Python's.

Knows where the two notations differ. Must not know who matches what. Called by the Corefile parser.

Go matches in time linear in the text, Python backtracks; an expression on which backtracking takes exponential time is
refused when the configuration is read (`ambiguity`), because the text it would be matched with comes from the network.

Source: Go package regexp/syntax.
"""

from __future__ import annotations

import re

from dnsserver.ambiguity import is_exponential

_POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7F", "blank": r"\t ", "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t\n\v\f\r ",
    "upper": "A-Z", "word": r"0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")


def compile_go(text: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """The compiled expression. Without case where `ignore_case`, as (?i) in front would say.

    Raises:
        ValueError: Python cannot express it, it is broken, or it would be exponential.
    """
    translated, flags = _translate(text)
    if ignore_case:
        flags |= re.IGNORECASE
    try:
        pattern = re.compile(translated, flags | re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if is_exponential(pattern):
        raise ValueError("takes exponential time on some names, as (a+)+ does; repeat only what cannot match two ways")
    return pattern


def _translate(text: str) -> tuple[str, int]:
    """Python's notation for `text`, and the flags set in front."""
    flags = 0
    at = 0
    while (found := _FLAGS.match(text, at)) and found[3] == ")":
        # In front it holds for all; further inside Go lets it hold for the rest of the group, which Python cannot say.
        if found[2] or not set(found[1]) <= set("ims"):
            raise ValueError(f"{found[0]} is not supported; write (?i), (?m) or (?s)")
        for flag in found[1]:
            flags |= {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}[flag]
        at = found.end()
    out: list[str] = []
    in_class = False
    while at < len(text):
        pair = text[at : at + 2]
        if pair == "\\Q":
            end = text.find("\\E", at)
            end = len(text) if end < 0 else end
            out.append(re.escape(text[at + 2 : end]))
            at = end + 2
        elif pair[:1] == "\\":
            out.append(_escape(pair))
            at += 2
        elif in_class and (posix := _CLASS.match(text, at)):
            if posix[1] or posix[2] not in _POSIX:
                raise ValueError(f"{posix[0]} is not supported")
            out.append(_POSIX[posix[2]])
            at = posix.end()
        elif in_class:
            # Python reserves a bare [ in a class for set operations to come.
            out.append("\\[" if text[at] == "[" else text[at])
            in_class = text[at] != "]"
            at += 1
        elif text[at] == "[":
            opening = re.compile(r"\[\^?\]?").match(text, at)
            assert opening is not None  # noqa: S101 - the bracket is there
            out.append(opening[0].replace("]", "\\]"))
            in_class = True
            at = opening.end()
        elif text.startswith("(?<", at) and text[at + 3 : at + 4] not in ("=", "!"):
            out.append("(?P<")
            at += 3
        elif re.match(r"\(\?(?:[=!]|<[=!]|\(|P=|#|>)", text[at:]) or re.match(r"[*+?}]\+", text[at:]):
            raise ValueError(f"'{text[at : at + 3]}' is not part of Go's notation")
        else:
            out.append(text[at])
            at += 1
    return "".join(out), flags


def _escape(pair: str) -> str:
    match pair[1:]:
        case "z":
            return "\\Z"
        case "Z" | "G" | "" | "E":
            raise ValueError(f"'{pair}' is not part of Go's notation")
        case "p" | "P" | "C":
            raise ValueError(f"'{pair}' is not supported; write the letters as a class such as [a-z]")
        case digit if digit in "123456789":
            raise ValueError(f"back reference '{pair}' is not part of Go's notation")
        case _:
            return pair
