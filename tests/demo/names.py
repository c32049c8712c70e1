"""Steps about names: every kind of record, asked with dig from a pod, which is to say through our own proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.demo.cluster import CLUSTER_DNS, Cluster, without_remarks
from tests.demo.report import Report

ZONE = "svc.cluster.local"
_REMEDY = "ask again in a shell of the cluster: make demo KEEP=1; the log of dnsserver is dns-1.log"


@dataclass(frozen=True)
class Lookup:
    """A question and the answer it must have."""

    what: str
    question: str
    """dig's arguments."""
    answer: frozenset[str]
    """The lines of +short, in any order."""


LOOKUPS = (
    Lookup("ClusterIP", f"web.demo.{ZONE} A", frozenset({"10.96.20.1"})),
    Lookup("ClusterIP, IPv6", f"web.demo.{ZONE} AAAA", frozenset({"fd00:10:96::20:1"})),
    Lookup("short name by the search list", "web A", frozenset({"10.96.20.1"})),
    Lookup("headless Service: every pod", f"db.demo.{ZONE} A", frozenset({"10.244.1.31", "10.244.2.32"})),
    Lookup(
        "SRV of a named port",
        f"_pg._tcp.db.demo.{ZONE} SRV",
        frozenset({f"0 50 5432 db-0.db.demo.{ZONE}.", f"0 50 5432 db-1.db.demo.{ZONE}."}),
    ),
    Lookup("a pod by its hostname", f"db-1.db.demo.{ZONE} A", frozenset({"10.244.2.32"})),
    Lookup("PTR of a ClusterIP", "-x 10.96.20.1", frozenset({f"web.demo.{ZONE}."})),
    Lookup("PTR of a headless Service's pod", "-x 10.244.1.31", frozenset({f"db-0.db.demo.{ZONE}."})),
    Lookup(
        "ExternalName: a CNAME, followed upstream",
        f"mirror.demo.{ZONE} A",
        frozenset({"www.example.org.", "192.0.2.80"}),
    ),
    Lookup("a name outside, forwarded", "registry.example.org A", frozenset({"192.0.2.81"})),
)


def run(cluster: Cluster, report: Report) -> None:
    """All lookups, by one dig; one of them in full."""
    report.section(f"Names: dig in a pod, nameserver {CLUSTER_DNS} (a ClusterIP of our own proxy)")
    full = cluster.host("client").run(f"dig -r +search {LOOKUPS[0].question}").stdout
    report.command("pod client", f"dig {LOOKUPS[0].question}", _without_blank_lines(full))
    answers = ask(cluster, "client", LOOKUPS)
    for lookup in LOOKUPS:
        lines = answers[lookup]
        report.command("pod client", f"dig +short {lookup.question}", lines)
        report.check(set(lines) == lookup.answer, f"DNS {lookup.what}", seen=lines or "no answer", remedy=_REMEDY)
    report.check(
        f"SERVER: {CLUSTER_DNS}#53" in full, "Lookups go through the kube-dns Service", seen=full, remedy=_REMEDY
    )


def ask(cluster: Cluster, host: str, lookups: tuple[Lookup, ...]) -> dict[Lookup, list[str]]:
    """The +short lines for each lookup. One shell, as a process costs more in the guest than a query."""
    script = "; echo --; ".join(f"dig -r +search +short {lookup.question}" for lookup in lookups)
    output = cluster.host(host).run(script, check=False).stdout
    parts = re.split(r"^--\n", output, flags=re.MULTILINE)
    return {lookup: without_remarks(part) for lookup, part in zip(lookups, parts, strict=True)}


def _without_blank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
