"""The network of one test: hosts (network namespaces) that a test links, configures and talks from.

The API tests use; every method is one request to the guest. See README.md beside this file for an example.
"""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .handles import (
    CallError,
    CommandError,
    Connection,
    Process,
    Result,
    Server,
    Traffic,
    TrafficReport,
)
from .outcomes import Answer, Outcome, from_wire

if TYPE_CHECKING:
    from .lab import Lab

__all__ = [
    "CallError",
    "CommandError",
    "Connection",
    "Host",
    "Net",
    "Process",
    "Result",
    "Server",
    "Traffic",
    "TrafficReport",
    "answered",
]

# Written before any device exists, so that addresses are usable at once: without duplicate address detection.
_SYSCTLS = {
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
}
_FORWARDING = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
Step = tuple[str, ...]
_DEVICE_LENGTH = 15  # IFNAMSIZ less the terminating zero


class Net:
    """One test's hosts. Their namespaces are new, and gone with all that ran in them when the test ends."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self._hosts: dict[str, Host] = {}
        self._link_locals = itertools.count(1)

    def host(self, name: str, *, forwarding: bool = False, sysctls: Mapping[str, str] | None = None) -> Host:
        """The host `name`, made at its first mention with only its loopback.

        Args:
            name: anything without slashes; also the default name of its servers and of the devices that lead to it.
            forwarding: it forwards packets, IPv4 and IPv6 (nodes do).
            sysctls: `{"net.ipv4.vs.conntrack": "1"}`, written in this namespace.
        """
        wanted = {**(_FORWARDING if forwarding else {}), **(sysctls or {})}
        if name in self._hosts:
            if wanted:
                self._hosts[name].sysctl(wanted)
            return self._hosts[name]
        host = Host(self, name)
        self.lab.request("namespace", name=host.namespace, sysctls={**_SYSCTLS, **wanted})
        self._hosts[name] = host
        return host

    def link(
        self,
        a: str,
        b: str,
        addresses_a: Iterable[str] = (),
        addresses_b: Iterable[str] = (),
        *,
        gateway: bool = False,
        device_a: str | None = None,
        device_b: str | None = None,
    ) -> None:
        """Joins two hosts by a veth pair; each end is called after the host it leads to, unless named.

        Args:
            a: a host; `addresses_a` are on its end, with prefix length, IPv4 and IPv6.
            b: the other.
            gateway: b's default routes lead to a, to its first address of each family (in b's subnet or not).
        """
        host_a, host_b = self.host(a), self.host(b)
        device_a, device_b = (device_a or b)[:_DEVICE_LENGTH], (device_b or a)[:_DEVICE_LENGTH]
        addresses_a = list(addresses_a)
        host_a.configure([("veth", device_a, device_b, host_b.namespace), *self._device_up(device_a, addresses_a)])
        routes = []
        if gateway:
            first = {ip_interface(address).version: ip_interface(address).ip for address in reversed(addresses_a)}
            routes = [("default", device_b, str(via)) for via in first.values()]
        host_b.configure([*self._device_up(device_b, addresses_b), *routes])

    def lan(self, name: str, hosts: Mapping[str, Iterable[str]]) -> None:
        """Joins hosts by a switch (a bridge in a namespace of its own); every host's device is called `name`.

        Args:
            hosts: `{"node1": ["192.168.50.10/24", "fd00:50::10/64"], ...}`.
        """
        steps: list[Step] = [("bridge", "bridge"), ("up", "bridge")]
        for number, host in enumerate(hosts):
            steps.append(("veth", f"port{number}", name, self.host(host).namespace))
            steps.append(("port", f"port{number}", "bridge"))
        self.host(f"switch-{name}").configure(steps)
        for host, addresses in hosts.items():
            self.host(host).configure(self._device_up(name, addresses))

    def _device_up(self, device: str, addresses: Iterable[str]) -> list[Step]:
        local = f"fe80::{next(self._link_locals):x}/64"
        return [("up", device), *(("address", device, address) for address in (*addresses, local))]

    def hosts(self) -> list[Host]:
        """The hosts made so far."""
        return list(self._hosts.values())

    def report(self) -> str:
        """State of every host's kernel, for a failed test: addresses, routes, IPVS, nftables, conntrack."""
        commands = (
            "ip -br address",
            "ip route show table all | head -100",
            "ipvsadm -Ln --stats | head -100",
            "ipvsadm -Lcn | head -50",
            "nft list ruleset | head -300",
            "conntrack -L 2>/dev/null | head -50",
        )
        script = "; ".join(f"echo '# {command}'; {command}" for command in commands)
        parts = []
        for host in self._hosts.values():
            result = host.run(script, check=False)
            parts.append(f"===== {host.name}\n{result.stdout}{result.stderr}")
        return "\n".join(parts)

    def close(self) -> None:
        """Ends what runs in the hosts and removes them. Idempotent; silent when the guest is gone."""
        names = [host.namespace for host in self._hosts.values()]
        self._hosts.clear()
        if names and self.lab.alive:
            self.lab.request("cleanup", names=names)


class Host:
    """A network namespace, with what runs in it."""

    def __init__(self, net: Net, name: str) -> None:
        self.net = net
        self.name = name
        self.namespace = f"{net.name}-{name}"
        """Its name for `ip netns`."""
        self._lab = net.lab

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = 30.0,
        check: bool = True,
    ) -> Result:
        """A command run to its end: a string by `bash -c`, a list as it is.

        Raises:
            CommandError: it failed (unless `check` is false), or took longer than `timeout_s` and was killed.
        """
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        text = command if isinstance(command, str) else shlex.join(command)
        reply = self._lab.request(
            "run",
            limit_s=timeout_s,
            namespace=self.namespace,
            argv=argv,
            stdin=stdin,
            env=dict(env or {}),
            cwd=cwd,
            timeout_s=timeout_s,
        )
        result = Result(text, reply["code"], reply["stdout"], reply["stderr"])
        if reply["timed_out"]:
            raise CommandError(
                f"{self.name}: `{text}` took longer than {timeout_s:g} s\n{result.stdout}{result.stderr}"
            )
        if check and result.code != 0:
            raise CommandError(f"{self.name}: `{text}` ended with {result.code}\n{result.stdout}{result.stderr}")
        return result

    def configure(self, steps: Sequence[Step]) -> None:
        """Carries out steps of `rtnetlink.configure`."""
        self._lab.request("configure", namespace=self.namespace, steps=list(steps))

    def ip(self, lines: Iterable[str]) -> None:
        """Runs lines of `ip` commands in one process (`ip -batch`)."""
        if text := "".join(f"{line}\n" for line in lines):
            try:
                self.run(["ip", "-batch", "-"], stdin=text)
            except CommandError as error:
                raise CommandError(f"{error}in:\n{text}") from None

    def ipvs(self, rules: str) -> None:
        """Restores `ipvsadm -Sn` lines: adds the virtual and real servers they name. Indentation is ignored."""
        lines = [stripped for line in rules.splitlines() if (stripped := line.strip()) and not stripped.startswith("#")]
        # `ipvsadm -R` reads on after a bad line and still exits 0: a complaint is a failure.
        result = self.run(["ipvsadm", "-R"], stdin="".join(f"{line}\n" for line in lines), check=False)
        if result.code != 0 or result.stderr.strip():
            raise CommandError(f"{self.name}: ipvsadm -R: {result.stdout}{result.stderr}")

    def ipvs_rules(self) -> list[str]:
        """The lines of `ipvsadm -Sn`."""
        return self.run(["ipvsadm", "-Sn"]).lines

    def nft(self, ruleset: str) -> None:
        """Applies an nftables script in one transaction."""
        self.run(["nft", "-f", "-"], stdin=ruleset)

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Writes sysctls in this namespace (`{"net.ipv4.vs.conntrack": "1"}`)."""
        self._lab.request("sysctls", namespace=self.namespace, sysctls=dict(values))

    def popen(
        self,
        command: str | Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """A process that goes on, in the project's directory unless `cwd` says otherwise; killed at the test's end."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        pid = self._lab.request("start", namespace=self.namespace, argv=argv, stdin=stdin, env=dict(env or {}), cwd=cwd)
        return Process(self._lab, command if isinstance(command, str) else shlex.join(command), pid)

    def call(self, function: str | Callable[..., Any], *args: Any, timeout_s: float = 30.0, **kwargs: Any) -> Any:
        """What a Python function (or coroutine function) returns when run in this namespace, in a process of its own.

        Args:
            function: a module-level function, or `module:name`; it is imported anew in the guest.
            args: JSON values, as what it returns must be.

        Raises:
            CallError: it raised.
            CommandError: it took longer than `timeout_s`, or its process was killed.
        """
        if not isinstance(function, str):
            module = inspect.getmodule(function)
            function = f"{module.__name__ if module else '?'}:{function.__qualname__}"
        reply = self._lab.request(
            "call",
            limit_s=timeout_s,
            namespace=self.namespace,
            function=function,
            args=list(args),
            kwargs=kwargs,
            timeout_s=timeout_s,
        )
        output = f"\n{reply['stdout']}{reply['stderr']}"
        if reply["timed_out"]:
            raise CommandError(f"{self.name}: {function} took longer than {timeout_s:g} s{output}")
        if reply["result"] is None:
            raise CommandError(f"{self.name}: {function} ended with {reply['code']}{output}")
        if "raised" in reply["result"]:
            raise CallError(
                reply["result"]["raised"], reply["result"]["message"], reply["result"]["traceback"] + output
            )
        return reply["result"]["value"]

    def shell(self, rc: Path | None = None) -> None:
        """An interactive shell in this host, on this process's terminal; bash reads the file `rc` first."""
        self._lab.shell(self.namespace, rc)

    # Servers and clients

    def serve(
        self,
        *,
        tcp: Iterable[int] = (),
        udp: Iterable[int] = (),
        sctp: Iterable[int] = (),
        name: str | None = None,
        address: str | None = None,
        delay_s: float = 0.0,
    ) -> Server:
        """A server answering `NAME saw SOURCE:PORT at ADDRESS:PORT` on these ports; TCP ports answer HTTP as well.

        Args:
            name: how it calls itself; the host's name unless given.
            address: listen there only; otherwise on all addresses, IPv4 and IPv6.
            delay_s: wait before each answer over TCP, HTTP or SCTP.
        """
        wanted = [("tcp", port) for port in tcp] + [("udp", port) for port in udp] + [("sctp", port) for port in sctp]
        ports = [
            (transport, where, port)
            for transport, port in wanted
            for where in ([address] if address else ["0.0.0.0", "::"])
        ]
        number = self._lab.request(
            "serve", namespace=self.namespace, name=name or self.name, ports=ports, delay_s=delay_s
        )
        return Server(self._lab, number)

    def connect(
        self,
        target: str,
        *,
        proto: str = "tcp",
        count: int = 1,
        parallel: int = 1,
        source: str | None = None,
        source_port: int = 0,
        timeout_s: float = 2.0,
        reset: bool = False,
    ) -> list[Outcome]:
        """Outcomes of `count` new connections to `10.96.0.10:80` or `[fd00::1]:80`, each asking one question.

        Args:
            proto: tcp, udp or sctp.
            parallel: how many at a time.
            source: bind to this address; source_port: bind to this port (0: the kernel's choice).
            timeout_s: for connecting, and again for the answer.
            reset: end each TCP connection with RST, leaving no TIME_WAIT.
        """
        limit_s = 2 * timeout_s * -(-count // parallel)
        replies = self._lab.request(
            "connect",
            limit_s=limit_s,
            namespace=self.namespace,
            target=target,
            count=count,
            parallel=parallel,
            **_client(proto, source, source_port, timeout_s),
            reset=reset,
        )
        return [from_wire(reply) for reply in replies]

    def open(
        self,
        target: str,
        *,
        proto: str = "tcp",
        source: str | None = None,
        source_port: int = 0,
        timeout_s: float = 2.0,
    ) -> Connection:
        """A connection that stays open, asked once already: `first` is that outcome (a Failure: it did not open)."""
        reply = self._lab.request(
            "open",
            limit_s=2 * timeout_s,
            namespace=self.namespace,
            target=target,
            **_client(proto, source, source_port, timeout_s),
        )
        return Connection(self._lab, reply["number"], from_wire(reply["outcome"]))

    def traffic(
        self,
        target: str,
        *,
        proto: str = "tcp",
        seconds: float | None = None,
        limit: int | None = None,
        interval_s: float = 0.02,
        timeout_s: float = 2.0,
    ) -> Traffic:
        """New connections in the background, one every `interval_s`, until stopped, a number or a time."""
        number = self._lab.request(
            "traffic",
            namespace=self.namespace,
            target=target,
            seconds=seconds,
            limit=limit,
            interval_s=interval_s,
            **_client(proto, None, 0, timeout_s),
            reset=False,
        )
        return Traffic(self._lab, number)


def answered(outcomes: Iterable[Outcome]) -> list[Answer]:
    """The outcomes as answers.

    Raises:
        AssertionError: one is a failure; the message lists them all.
    """
    outcomes = list(outcomes)
    assert all(isinstance(outcome, Answer) for outcome in outcomes), f"not all answered: {list(map(str, outcomes))}"
    return [outcome for outcome in outcomes if isinstance(outcome, Answer)]


def _client(proto: str, source: str | None, source_port: int, timeout_s: float) -> dict[str, Any]:
    return {"transport": proto, "source": source, "source_port": source_port, "timeout_s": timeout_s}
