"""Settings from a configuration file and flags, with every mistake reported at once.

Knows: the two documents (kube-proxy's, read unmodified, and ours), that a flag beats the file, and which settings
contradict each other. Must not know: where the text came from, argparse. Called by the commands.

Unlike kube-proxy, which logs and goes on, an unknown word is an error: a typing mistake in a security setting must not
pass. Known fields that mean nothing here (winkernel, say) are accepted and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ipvsproxy.config import Config, LocalMode
from ipvsproxy.configfields import EXTERNAL_IPS_GATE, FLAGS, IGNORED_FLAGS, KUBE_PROXY, LANGUAGES, OURS, Field
from ipvsproxy.configvalues import BadValue, nearest
from kubecore.manifest import Document, ManifestError, field_text, parse_documents

_IS_ZERO_DURATION = re.compile(r"(0+(h|m|s|ms))+").fullmatch
_OFF_BY_EMPTY = frozenset({"healthz-bind-address", "metrics-bind-address"})


class ConfigError(Exception):
    """Settings that cannot be used; `mistakes` has one sentence each, with file, line, field and remedy."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Loaded(NamedTuple):
    """What came of file and flags."""

    config: Config
    ignored: tuple[str, ...]
    """Known fields that were set and mean nothing here, with file and line."""


class _Source(NamedTuple):
    """Where a value was given, for an error about it."""

    document: Document | None
    path: tuple[str, ...]

    def mistake(self, reason: str, remedy: str = "") -> str:
        if self.document is not None:
            return str(self.document.error(self.path, reason, remedy))
        return f"--{self.path[0]}: {reason}" + (f"; {remedy}" if remedy else "")


def load_config(
    text: str | bytes | None, filename: str, flags: Mapping[str, Any], additions: tuple[str | bytes, str] | None = None
) -> Loaded:
    """The settings of a file's text (None: no file), of a second file and of flags (those given, without dashes).

    Args:
        text: both documents, or kube-proxy's alone.
        filename: for messages.
        flags: beat the files.
        additions: text and name of a file with what `text` lacks, where that is somebody else's.

    Raises: ConfigError with every mistake there is.
    """
    reader = _Reader()
    if text is not None:
        reader.read(text, filename)
    if additions is not None:
        reader.read(*additions)
    for name, value in flags.items():
        reader.flag(name, value)
    return reader.finish()


def node_name(config: Config, *, flag: str | None, environment: str | None, hostname: str) -> str:
    """This node's name: `--node`, else hostnameOverride, else NODE_NAME, else the hostname; trimmed, lower case.

    Raises: ConfigError if all of them are empty.
    """
    for candidate in (flag, config.hostname_override, environment, hostname):
        name = (candidate or "").strip().lower()
        if name:
            return name
    raise ConfigError(["this node has no name; give one by --node, hostnameOverride or NODE_NAME"])


class _Reader:
    """Collects values by target attribute, and mistakes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, _Source] = {}
        self.mistakes: list[str] = []
        self.ignored: list[str] = []
        self.seen: set[tuple[str, str]] = set()

    def read(self, text: str | bytes, filename: str) -> None:
        try:
            documents = parse_documents(text, filename)
        except ManifestError as error:
            self.mistakes.append(str(error))
            return
        for document in documents:
            self._document(document)
        if not documents:
            self.mistakes.append(
                f"{filename}: there is no document in it; write apiVersion: {KUBE_PROXY[0]} and kind: {KUBE_PROXY[1]}"
            )

    def _document(self, document: Document) -> None:
        data = document.data
        if not isinstance(data, dict):
            self.mistakes.append(str(document.error((), "not a mapping", "write one field a line, as name: value")))
            return
        inner = data.get("data") if data.get("kind") == "ConfigMap" else None
        if isinstance(inner, dict) and isinstance(inner.get("config.conf"), str):
            self.read(inner["config.conf"], f"{document.file}[config.conf]")  # kubeadm's ConfigMap as kubectl prints it
            return
        language = (str(data.get("apiVersion") or ""), str(data.get("kind") or ""))
        if language not in LANGUAGES:
            wanted = " or ".join(f"apiVersion: {a}, kind: {k}" for a, k in (KUBE_PROXY, OURS))
            field = ("kind",) if language[0] in {KUBE_PROXY[0], OURS[0]} else ("apiVersion",)
            given = f"{language[0] or 'no apiVersion'}, {language[1] or 'no kind'}"
            reason = f"{given} is not a configuration of this proxy"
            self.mistakes.append(str(document.error(field, reason, f"write {wanted}")))
            return
        if language in self.seen:
            self.mistakes.append(str(document.error(("kind",), f"a second {language[1]}", "merge the two")))
        self.seen.add(language)
        fields, ignored = LANGUAGES[language]
        for path, value in self._leaves(document, data, (), fields, ignored):
            self._value(fields[".".join(path)], value, _Source(document, path))

    def _leaves(
        self,
        document: Document,
        data: dict[str, Any],
        above: tuple[str, ...],
        fields: Mapping[str, Field],
        ignored: frozenset[str],
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        """The known fields of a document, at any depth; everything else is noted."""
        for key, value in data.items():
            path = (*above, key)
            name = ".".join(path)
            if name in fields:
                yield path, value
            elif name in ignored:
                if _says_something(value):
                    self.ignored.append(f"{document.file}:{document.line_of(path)}: {name} has no effect here")
            elif any(f.startswith(f"{name}.") for f in (*fields, *ignored)):
                if isinstance(value, dict):
                    yield from self._leaves(document, value, path, fields, ignored)
                elif value is not None:
                    remedy = "write its fields below it, one a line"
                    self.mistakes.append(str(document.error(path, f"{value!r} is not a mapping", remedy)))
            elif above or key not in {"apiVersion", "kind"}:
                self.mistakes.append(self._unknown(document, path, (*fields, *ignored)))

    def _unknown(self, document: Document, path: tuple[str, ...], known: tuple[str, ...]) -> str:
        prefix = "".join(f"{p}." for p in path[:-1])
        siblings = sorted({k.removeprefix(prefix).split(".")[0] for k in known if k.startswith(prefix)})
        hint = nearest(path[-1], siblings)
        elsewhere = [k for k in known if k.split(".")[-1] == path[-1]]
        if elsewhere and not hint.startswith("did"):
            hint = f"did you mean {field_text(tuple(elsewhere[0].split('.')))}?"
        return str(document.error(path, "unknown field", hint))

    def flag(self, name: str, value: Any) -> None:
        source = _Source(None, (name,))
        if name in IGNORED_FLAGS:
            self.ignored.append(f"--{name} has no effect here")
            return
        if name in _OFF_BY_EMPTY and value == "":
            self.values[FLAGS[name].target] = None
            return
        self._value(FLAGS[name], value, source)

    def _value(self, field: Field, value: Any, source: _Source) -> None:
        if value is None or (field.empty_is_default and _is_empty(value, of_a_flag=source.document is None)):
            return
        try:
            parsed = field.parse(value)
        except BadValue as bad:
            self.mistakes.append(source.mistake(bad.reason, bad.remedy))
            return
        if field.target:
            self.values[field.target] = parsed
            self.sources[field.target] = source

    def finish(self) -> Loaded:
        for name, value in self.values.items():
            if name.startswith("conntrack.") and name.endswith("_timeout_s") and value == 0:
                self.values[name] = None  # leave the kernel's alone
        for gate, is_on in self.values.pop("feature_gates", {}).items():
            if gate != EXTERNAL_IPS_GATE:
                self.ignored.append(self.sources["feature_gates"].mistake(f"gate {gate} has no effect here"))
            elif not is_on:
                self.values["additions.allow_external_ips"] = ()
        config = _assign(Config(), self.values)
        self._cross_check(config)
        if self.mistakes:
            raise ConfigError(self.mistakes)
        return Loaded(config, tuple(self.ignored))

    def _cross_check(self, config: Config) -> None:
        ipvs, local = config.ipvs, config.detect_local
        if ipvs.min_sync_period_s > ipvs.sync_period_s:
            message = f"{ipvs.min_sync_period_s:g}s is longer than syncPeriod ({ipvs.sync_period_s:g}s)"
            self._mistake("ipvs.min_sync_period_s", message, "make it at most syncPeriod")
        needed = {
            LocalMode.BRIDGE_INTERFACE: ("detectLocal.bridgeInterface", local.bridge_interface),
            LocalMode.INTERFACE_NAME_PREFIX: ("detectLocal.interfaceNamePrefix", local.interface_name_prefix),
        }
        field, value = needed.get(local.mode, ("", "-"))
        if not value:
            self._mistake("detect_local.mode", f"{local.mode.value} needs {field}", f"set {field}")

    def _mistake(self, target: str, reason: str, remedy: str) -> None:
        source = self.sources.get(target)
        self.mistakes.append(source.mistake(reason, remedy) if source else f"{target}: {reason}; {remedy}")


def _is_empty(value: Any, *, of_a_flag: bool) -> bool:
    """Whether a value asks for the default: "" does, and in a file a zero, for what is not set is written so there."""
    if isinstance(value, str):
        return not value or (not of_a_flag and _IS_ZERO_DURATION(value) is not None)
    return isinstance(value, int | float) and value == 0 and value is not False


def _says_something(value: Any) -> bool:
    """Whether a field without effect was set on purpose: kubeadm writes every field there is, mostly empty."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return value not in (None, "", "0", 0, "0s", False, [])


def _assign(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with attributes, given as dotted names, replaced."""
    nested: dict[str, dict[str, Any]] = {}
    for target, value in values.items():
        group, _, name = target.rpartition(".")
        nested.setdefault(group, {})[name] = value
    top = nested.pop("", {})
    for group, fields in nested.items():
        top[group] = msgspec.structs.replace(getattr(config, group), **fields)
    return msgspec.structs.replace(config, **top)
