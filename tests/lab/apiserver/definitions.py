"""CustomResourceDefinitions that tests install, reduced to what the stub reads."""

from __future__ import annotations

from tests.lab.apiserver.kinds import Object

SERVICE_IMPORTS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "serviceimports.multicluster.x-k8s.io"},
    "spec": {
        "group": "multicluster.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "ServiceImport", "plural": "serviceimports", "singular": "serviceimport"},
        "versions": [{"name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}}}],
    },
}
