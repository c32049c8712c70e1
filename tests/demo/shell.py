"""`make demo KEEP=1`: an interactive shell in the cluster, with `kube`, `on HOST COMMAND`, dig and curl at hand."""

from __future__ import annotations

import sys

from tests.demo import objects
from tests.demo.cluster import Cluster
from tests.demo.report import Report
from tests.lab.kernel.lab import ROOT

_RC = """\
export KUBECONFIG={kubeconfig}
kube() {{ {python} -m tests.demo.kube "$@"; }}
on() {{
  local host=$1; shift
  [ -e /run/netns/{net}-"$host" ] || {{ echo "on: there is no host '$host'; there are: $(hosts)" >&2; return 1; }}
  nsenter --net=/run/netns/{net}-"$host" "$@"
}}
hosts() {{ ls /run/netns | sed -n 's/^{net}-//p' | xargs; }}
PS1='pod client# '
"""


def run(cluster: Cluster, report: Report) -> None:
    """Returns when the person leaves the shell."""
    rc = cluster.directory / "rc"
    rc.write_text(_RC.format(kubeconfig=cluster.pod_kubeconfig, python=sys.executable, net=cluster.net.name))
    report.section("A shell in the pod `client`; exit ends the cluster")
    spare = (objects.OWN / "scale-up.yaml").relative_to(ROOT)
    for command, what in (
        ("dig web.demo.svc.cluster.local", "names, as any pod sees them"),
        ("curl http://web/", "Services, likewise"),
        ("kube get services", "or pods, endpointslices …; with a NAME as YAML"),
        ("kube edit service web", "in $EDITOR; also kube delete KIND NAME"),
        (f"kube apply -f {spare}", "one more pod behind web"),
        ("on node-a ipvsadm -Ln", "a command on another host"),
        ("on outside curl http://192.168.50.10:30081/", "a node port"),
        ("hosts", "which hosts there are"),
    ):
        report.say(f"  {command:34} {what}")
    report.console.file.flush()
    cluster.host("client").shell(rc)
