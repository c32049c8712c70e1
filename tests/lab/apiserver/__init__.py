"""A stand-in for kube-apiserver that behaves like it where a client can tell, with faults on demand.

In a test: `async with ApiServer() as server: server.put(obj); …`. As a process: `python -m tests.lab.apiserver --help`.
"""

from tests.lab.apiserver.faults import Fault
from tests.lab.apiserver.rbac import Asked, Policy, Recorded
from tests.lab.apiserver.server import ApiServer
from tests.lab.apiserver.status import Refusal
from tests.lab.apiserver.tls import Authority, kubeconfig

__all__ = ["ApiServer", "Asked", "Authority", "Fault", "Policy", "Recorded", "Refusal", "kubeconfig"]
