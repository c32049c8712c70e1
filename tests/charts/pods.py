"""A rendered pod, started container by container in a host of the lab; the kubelet's part.

Knows: volumes (ConfigMaps, the service account's token, emptyDirs, the node's directories), environment, security
contexts, probes. The processes are the checkout's, unless an image's root is given.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.charts.helm import ROOT, Object, Rendered
from tests.lab.kernel.net import Host, Process

PACKAGES = ("kubecore", "ipvsproxy", "dnsserver")
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_RUNNER = Path(__file__).with_name("container.py")


def _programs() -> dict[str, str]:
    """Where the checkout's programs are seen in the container: mount point → directory."""
    found = {f"/opt/app/{name}": str(ROOT / name) for name in PACKAGES}
    found["/opt/site-packages"] = sysconfig.get_paths()["purelib"]
    base = Path(sys.base_prefix).resolve()
    if base != Path("/usr"):  # an interpreter of its own, such as pyenv's
        found[str(base)] = str(base)
    return found


@dataclass
class Node:
    """What a pod finds on the node and in the cluster."""

    host: Host
    name: str
    address: str
    directory: Path
    """For files of the pods; seen in the guest, too."""
    config_maps: dict[str, Mapping[str, str]]
    token: str
    ca_pem: str
    api: tuple[str, str]
    """KUBERNETES_SERVICE_HOST and _PORT, as the kubelet gives them."""
    resolv_conf: str = "nameserver 192.0.2.53\n"
    image: str = ""
    """The root of an image; empty: the checkout, on the host's own system."""
    services: dict[str, str] = field(default_factory=dict)
    """Environment of Services of the namespace."""

    def add(self, objects: Rendered) -> None:
        """Take the rendered ConfigMaps in."""
        for document in objects:
            if document["kind"] == "ConfigMap":
                self.config_maps[document["metadata"]["name"]] = document["data"]


class Pod:
    """One pod on a node, made from the template of a Deployment or DaemonSet (or a Pod itself)."""

    def __init__(self, node: Node, workload: Object, namespace: str = "kube-system") -> None:
        self.node = node
        self.name = workload["metadata"]["name"]
        self.namespace = namespace
        self.spec = workload["spec"] if workload["kind"] == "Pod" else workload["spec"]["template"]["spec"]
        self.directory = node.directory / self.name
        self.directory.mkdir()
        context = self.spec.get("securityContext", {})
        if sysctls := {s["name"]: s["value"] for s in context.get("sysctls", ())}:
            node.host.sysctl(sysctls)

    def container(self, name: str) -> Object:
        every = (*self.spec.get("initContainers", ()), *self.spec["containers"])
        return next(c for c in every if c["name"] == name)

    def start(self, name: str) -> Process:
        """Start a container."""
        spec = self._runtime_spec(self.container(name))
        file = self.directory / f"{name}.json"
        file.write_text(json.dumps(spec))
        python = getattr(sys, "_base_executable", sys.executable)
        return self.node.host.popen(
            ["unshare", "--mount", "--propagation", "private", python, str(_RUNNER), str(file)], cwd="/"
        )

    def run(self, name: str, timeout_s: float = 60.0) -> tuple[int | None, str]:
        """Run a container to its end: exit code and what it wrote."""
        process = self.start(name)
        code = process.wait(timeout_s)
        return code, process.log()

    def probe(self, name: str, kind: str) -> tuple[int, str]:
        """The status and body of a probe, asked from the node as the kubelet does; 0: no answer."""
        get = self.container(name)[f"{kind}Probe"]["httpGet"]
        host = get.get("host") or self.node.address
        url = f"http://{f'[{host}]' if ':' in host else host}:{get['port']}{get['path']}"
        said = self.node.host.run(
            ["curl", "-s", "-m", "5", "-w", "\n%{http_code}", "--noproxy", "*", url], check=False
        ).stdout
        body, _, status = said.rpartition("\n")
        return int(status or 0), body

    # -- the runtime's view

    def _runtime_spec(self, container: Object) -> Object:
        context = {**self.spec.get("securityContext", {}), **container["securityContext"]}
        group = context.get("fsGroup")
        capabilities = context["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        return {
            "root": str(self.directory / f"{container['name']}.root"),
            "image": self.node.image,
            "programs": {} if self.node.image else _programs(),
            "resolv_conf": self.node.resolv_conf,
            "mounts": [self._mount(m, group) for m in container.get("volumeMounts", ())] + self._token(),
            "read_only": context["readOnlyRootFilesystem"],
            "capabilities": capabilities.get("add", []),
            "no_new_privileges": not context["allowPrivilegeEscalation"],
            "user": context.get("runAsUser", 0),
            "group": context.get("runAsGroup", 0),
            "groups": group or 0,
            "env": self._env(container),
            "argv": self._argv(container),
        }

    def _argv(self, container: Object) -> list[str]:
        command, args = container.get("command"), container.get("args", [])
        if self.node.image or (command and "/" not in command[0] and command[0] != "python3"):
            return [*(command or [self._program(container)]), *args]
        python = str(Path(sys.base_prefix).resolve() / "bin" / "python3")
        if command:  # python3
            return [python, *command[1:], *args]
        return [python, "-m", self._program(container), *args]

    @staticmethod
    def _program(container: Object) -> str:
        """The image's entry point, which the Dockerfile calls as the image's last part."""
        return str(container["image"].partition(":")[0].rpartition("/")[2])

    def _env(self, container: Object) -> dict[str, str]:
        fields = {
            "spec.nodeName": self.node.name,
            "metadata.name": f"{self.name}-abcde",
            "metadata.namespace": self.namespace,
            "status.podIP": self.node.address,
            "status.hostIP": self.node.address,
        }
        env = {
            "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/",  # as runtimes set it for a user without an entry in /etc/passwd
            "PYTHONDONTWRITEBYTECODE": "1",
            "KUBERNETES_SERVICE_HOST": self.node.api[0],
            "KUBERNETES_SERVICE_PORT": self.node.api[1],
        }
        if not self.node.image:
            env["PYTHONPATH"] = "/opt/app:/opt/site-packages"
        if self.spec.get("enableServiceLinks", True):
            env |= self.node.services
        for variable in container.get("env", ()):
            value = variable.get("value")
            env[variable["name"]] = (
                str(value) if value is not None else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            )
        return env

    def _token(self) -> list[Object]:
        if not self.spec["automountServiceAccountToken"]:
            return []
        values = {"token": self.node.token, "ca.crt": self.node.ca_pem, "namespace": self.namespace}
        return [{"path": SERVICE_ACCOUNT, "source": self._directory("token", values), "read_only": True}]

    def _mount(self, mount: Object, group: int | None) -> Object:
        volume = next(v for v in self.spec["volumes"] if v["name"] == mount["name"])
        read_only = mount.get("readOnly", False)
        if "emptyDir" in volume:
            return {"path": mount["mountPath"], "size": 0, "group": group or 0}
        if "hostPath" in volume:
            return {"path": mount["mountPath"], "source": volume["hostPath"]["path"], "read_only": read_only}
        wanted = volume["configMap"]
        data = self.node.config_maps[wanted["name"]]
        if "items" in wanted:
            data = {item["path"]: data[item["key"]] for item in wanted["items"]}
        return {
            "path": mount["mountPath"],
            "source": self._directory(mount["name"], data),
            "read_only": True,
        }

    def _directory(self, name: str, files: Mapping[str, str]) -> str:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        for file, content in files.items():
            (directory / file).write_text(content)
            (directory / file).chmod(0o644)
        return str(directory)
