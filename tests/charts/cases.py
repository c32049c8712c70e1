"""Values the charts are tried with: what users set, alone and together."""

from __future__ import annotations

from typing import Any

from tests.charts.helm import Object

METRICS = "0.0.0.0:10249"
MONITORED: Object = {
    "prometheus": {
        "service": {"enabled": True, "annotations": {"a.example/b": "c"}},
        "monitor": {"enabled": True, "additionalLabels": {"release": "prometheus"}, "interval": "15s"},
        "prometheusRule": {"enabled": True, "namespace": "monitoring"},
    },
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Network"}},
}
POD_MONITORED: Object = {"prometheus": {"podMonitor": {"enabled": True, "interval": "30s"}}}
COMMON: dict[str, Object] = {
    "defaults": {},
    "names": {"nameOverride": "other", "fullnameOverride": "another-name"},
    "pinned": {
        "image": {
            "repository": "registry.example/x",
            "tag": "1.2.3",
            "digest": "sha256:" + "0" * 64,
            "pullPolicy": "Always",
            "pullSecrets": [{"name": "registry"}],
        }
    },
    "decorated": {
        "customLabels": {"team": "net"},
        "customAnnotations": {"owner": "net@example.org"},
        "podLabels": {"pod": "yes"},
        "podAnnotations": {"pod": "yes"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
        ]}}},
        "priorityClassName": "",
        "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
        "terminationGracePeriodSeconds": 5,
    },
    "no accounts": {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}},
    "no probes": {f"{probe}Probe": {"enabled": False} for probe in ("startup", "liveness", "readiness")},
    "extras": {
        "extraArgs": ["--log-level=debug"],
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraContainers": [{"name": "side", "image": "side:1"}],
        "initContainers": [{"name": "first", "image": "first:1"}],
    },
}  # fmt: skip

CASES: dict[str, dict[str, Object]] = {
    "ipvsproxy": {
        **COMMON,
        "kube-proxy's ConfigMap": {"existingConfigMap": "kube-proxy"},
        "kube-proxy's ConfigMap and additions": {
            "existingConfigMap": "kube-proxy",
            "additions": {"drain": {"grace": "2m"}, "allowExternalIPs": ["192.0.2.0/24"]},
        },
        "kube-proxy's kubeconfig": {"kubeconfigConfigMap": "kube-proxy", "config": {"clusterCIDR": "10.244.0.0/16"}},
        "address of the API server": {"k8sServiceHost": "192.0.2.1", "k8sServicePort": 6443},
        "address of the API server, IPv6": {"k8sServiceHost": "2001:db8::1", "k8sServicePort": "6443"},
        "configured": {
            "config": {
                "ipvs": {"scheduler": "lc", "strictARP": True, "tcpTimeout": "15m"},
                "nodePortAddresses": ["primary"],
                "conntrack": {"maxPerCore": 0},
            },
            "additions": {"schedulerFlags": ["sh-port"], "metrics": {"maxVirtualServers": 10}},
        },
        "other ports": {"healthz": {"bindAddress": "127.0.0.1:20256"}, "metrics": {"bindAddress": "[::]:20249"}},
        "one address": {"healthz": {"bindAddress": "192.0.2.7:10256"}},
        "modules": {"modules": {"load": True}},
        "cleanup": {"cleanup": {"enabled": True, "kubeProxy": True}},
        "monitored": {"metrics": {"bindAddress": METRICS}, **MONITORED},
        "monitored by pods": {"metrics": {"bindAddress": METRICS}, **POD_MONITORED},
    },
    "dnsserver": {
        **COMMON,
        "CoreDNS' ConfigMap, joining": {"existingConfigMap": "coredns", "service": {"create": False}},
        "pods of an existing Corefile": {"existingConfigMap": "coredns", "rbac": {"pods": True}},
        "imports of an existing Corefile": {"existingConfigMap": "coredns", "rbac": {"serviceImports": True}},
        "address": {"service": {"clusterIP": "10.96.0.10"}},
        "dual stack": {
            "service": {
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "fd00::a"],
                "ipFamilyPolicy": "RequireDualStack",
                "trafficDistribution": "PreferClose",
            }
        },
        "balanced": {
            "isClusterService": False,
            "service": {"name": "dns", "type": "LoadBalancer", "loadBalancerClass": "example.org/lb"},
        },
        "not the cluster's": {"isClusterService": False, "k8sAppLabelOverride": "edge"},
        "own servers": {
            "clusterDomain": "k8s.example",
            "extraConfig": {"import": {"parameters": "/more/*.conf"}},
            "servers": [
                {
                    "zones": [{"zone": "{{ .Values.clusterDomain }}", "scheme": "dns://", "use_tcp": True}],
                    "port": 1053,
                    "plugins": [
                        {"name": "health", "parameters": ":18080"},
                        {"name": "ready", "parameters": ":18181"},
                        {"name": "prometheus", "parameters": "0.0.0.0:19153"},
                        {
                            "name": "kubernetes",
                            "parameters": "{{ .Values.clusterDomain }}",
                            "configBlock": "pods verified\nttl 10",
                        },
                    ],
                },
                {
                    "zones": [{"zone": "."}],
                    "port": 53,
                    "plugins": [{"name": "whoami"}, {"name": "cache", "parameters": 30}],
                },
            ],
        },
        "workers without a snapshot": {"workers": 4, "snapshot": {"enabled": False}, "logLevel": "debug"},
        "snapshot on the node": {"snapshot": {"volume": {"emptyDir": None, "hostPath": {"path": "/var/lib/dns"}}}},
        "address of the API server": {"k8sServiceHost": "192.0.2.1", "k8sServicePort": 6443},
        "horizontal autoscaler": {
            "hpa": {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}
        },
        "proportional autoscaler": {"autoscaler": {"enabled": True, "min": 2, "max": 20}},
        "network policy": {"networkpolicies": {"enabled": True}},
        "no disruption budget": {"podDisruptionBudget": None},
        "node-local": {"nodeLocal": {"enabled": True, "upstream": "10.96.0.10"}},
        "node-local, IPv6": {
            "nodeLocal": {"enabled": True, "address": "fd00:53::1"},
            "service": {"clusterIP": "fd00::a"},
        },
        "node-local only": {"deployment": {"enabled": False}, "nodeLocal": {"enabled": True}},
        "monitored": {**MONITORED, "nodeLocal": {"enabled": True}},
        "monitored by pods": {**POD_MONITORED, "nodeLocal": {"enabled": True}},
    },
}  # fmt: skip

REFUSED: dict[str, list[tuple[Any, str]]] = {
    "ipvsproxy": [
        ({"replicas": 1}, "additional properties 'replicas' not allowed"),
        ({"image": {"tga": "x"}}, "additional properties 'tga' not allowed"),
        ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ({"k8sServicePort": "https"}, "does not match pattern"),
        ({"k8sServicePort": 70000}, "maximum"),
        ({"tolerations": {}}, "got object, want array"),
        ({"resources": {"limit": {}}}, "additional properties 'limit' not allowed"),
        ({"config": {"ipvs": {"schedular": "rr"}}}, "additional properties 'schedular' not allowed"),
        ({"config": {"ipvs": {"strictARP": "yes"}}}, "got string, want null or boolean"),
        ({"additions": {"drainGrace": "1m"}}, "additional properties 'drainGrace' not allowed"),
        ({"livenessProbe": {"enabled": "no"}}, "got string, want boolean"),
        ({"extraArgs": [1]}, "got number, want string"),
        ({"k8sServiceHost": "auto"}, "k8sServiceHost: auto found no kube-system/kube-proxy"),
        (
            {"existingConfigMap": "kube-proxy", "config": {"clusterCIDR": "10.0.0.0/8"}},
            "config and existingConfigMap exclude each other",
        ),
        ({"existingConfigMap": "a", "kubeconfigConfigMap": "b"}, "existingConfigMap and kubeconfigConfigMap exclude"),
        ({"existingConfigMap": "a", "k8sServiceHost": "192.0.2.1"}, "k8sServiceHost has no effect beside a kubeconfig"),
        ({"config": {"healthzBindAddress": "0.0.0.0:1"}}, "write healthz.bindAddress instead"),
        (
            {"metrics": {"bindAddress": METRICS}, "prometheus": {"monitor": {"enabled": True}}},
            "prometheus.monitor.enabled needs prometheus.service.enabled",
        ),
        (POD_MONITORED, "metrics.bindAddress 127.0.0.1:10249 cannot be scraped"),
        (
            {
                "metrics": {"bindAddress": METRICS},
                "prometheus": {
                    "service": {"enabled": True},
                    "monitor": {"enabled": True},
                    "podMonitor": {"enabled": True},
                },
            },
            "would scrape every pod twice",
        ),
        (
            {"modules": {"load": True}, "securityContext": {"capabilities": {"add": ["NET_ADMIN", "SYS_MODULE"]}}},
            "the daemon needs none",
        ),
    ],
    "dnsserver": [
        ({"replicaCount": "2"}, "got string, want integer"),
        ({"replicaCount": -1}, "minimum"),
        ({"service": {"clusterip": "10.0.0.1"}}, "additional properties 'clusterip' not allowed"),
        ({"service": {"ipFamilyPolicy": "Both"}}, "value must be one of"),
        ({"service": {"type": "ExternalName"}}, "value must be one of"),
        ({"servers": [{"zones": [{"zone": "."}]}]}, "missing property 'plugins'"),
        ({"servers": [{"plugins": [{"nane": "errors"}]}]}, "missing property 'name'"),
        (
            {"servers": [{"zones": [{"zone": ".", "scheme": "tls://"}], "plugins": [{"name": "whoami"}]}]},
            "value must be one of '', 'dns://'",
        ),
        ({"workers": 0}, "minimum"),
        ({"rbac": {"pods": "yes"}}, "value must be one of"),
        ({"nodeLocal": {"device": "a-name-that-is-too-long"}}, "maxLength"),
        ({"service": {"clusterIP": "auto"}}, "service.clusterIP: auto found no Service"),
        ({"hpa": {"enabled": True}, "autoscaler": {"enabled": True}}, "would both set the replicas"),
        (
            {"servers": [{"plugins": [{"name": "whoami"}]}]},
            "no server block has the plugin health, which livenessProbe and startupProbe ask",
        ),
        (
            {"servers": [{"plugins": [{"name": "health"}]}]},
            "no server block has the plugin ready, which readinessProbe asks",
        ),
        (
            {
                "servers": [{"plugins": [{"name": "health"}, {"name": "ready"}]}],
                "prometheus": {"podMonitor": {"enabled": True}},
            },
            "no server block has the plugin prometheus",
        ),
        (
            {"service": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}},
            "service.clusterIP must be the first of service.clusterIPs",
        ),
        ({"service": {"create": False}, "isClusterService": False}, "the pods would belong to no Service"),
        ({"prometheus": {"monitor": {"enabled": True}}}, "prometheus.monitor.enabled needs prometheus.service.enabled"),
    ],
}
