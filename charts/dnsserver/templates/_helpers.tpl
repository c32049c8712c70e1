{{- define "dnsserver.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "dnsserver.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "dnsserver.k8sApp" -}}
{{- .Values.k8sAppLabelOverride | default (ternary "kube-dns" (include "dnsserver.name" .) .Values.isClusterService) }}
{{- end }}

{{- define "dnsserver.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dnsserver.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dnsserver.labels" -}}
{{ include "dnsserver.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: dns
app.kubernetes.io/part-of: kube-ipvs-dns
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels and annotations of an object: everybody's, and its own (second and third item of the list). */ -}}
{{- define "dnsserver.metadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "dnsserver.labels" $root | nindent 2 }}
  {{- with index . 1 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (index . 2) $root.Values.customAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "dnsserver.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "dnsserver.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "dnsserver.image" -}}
{{- $image := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- with .Values.image.digest }}{{ $image = printf "%s@%s" $image . }}{{ end }}
{{- $image }}
{{- end }}

{{- /* A Corefile of server blocks as values have them; run through tpl. Takes (root, servers). */ -}}
{{- define "dnsserver.corefile" -}}
{{- $root := index . 0 }}
{{- $lines := list }}
{{- range $name, $directive := $root.Values.extraConfig }}
{{- $lines = append $lines (printf "%s %v" $name ($directive.parameters | default "") | trim) }}
{{- end }}
{{- range index . 1 }}
{{- $keys := list }}
{{- $port := .port }}
{{- range .zones }}
{{- $keys = append $keys (printf "%s%s%s" (.scheme | default "") .zone (ternary "" (printf ":%v" $port) (empty $port))) }}
{{- end }}
{{- $lines = append $lines (printf "%s {" (join " " ($keys | default (list (printf ".:%v" ($port | default 53)))))) }}
{{- range .plugins }}
{{- $line := list .name }}
{{- if hasKey . "parameters" }}{{ $line = append $line (toString .parameters) }}{{ end }}
{{- if .configBlock }}
{{- $lines = append $lines (printf "    %s {" (join " " $line)) }}
{{- $lines = append $lines (.configBlock | trim | indent 8) }}
{{- $lines = append $lines "    }" }}
{{- else }}
{{- $lines = append $lines (printf "    %s" (join " " $line)) }}
{{- end }}
{{- end }}
{{- $lines = append $lines "}" }}
{{- end }}
{{- tpl (join "\n" $lines) $root }}
{{- end }}

{{- define "dnsserver.nodeLocalUpstream" -}}
{{- if .Values.nodeLocal.upstream }}
{{- .Values.nodeLocal.upstream }}
{{- else if and .Values.service.clusterIP (ne .Values.service.clusterIP "auto") }}
{{- .Values.service.clusterIP }}
{{- else }}
{{- printf "{$%s_SERVICE_HOST}" (.Values.service.name | upper | replace "-" "_") }}
{{- end }}
{{- end }}

{{- /* Port of a plugin's endpoint: what its parameters name, else the third item; empty if no server block has the plugin. Takes (root, servers, default, plugin). */ -}}
{{- define "dnsserver.pluginPort" -}}
{{- $root := index . 0 }}
{{- $default := index . 2 }}
{{- $plugin := index . 3 }}
{{- $found := dict }}
{{- range index . 1 }}
{{- range .plugins }}
{{- if and (eq .name $plugin) (not $found.port) }}
{{- $words := regexSplit "\\s+" (tpl (toString (.parameters | default "")) $root) -1 }}
{{- $_ := set $found "port" (regexFind "[0-9]+$" (regexFind ":[0-9]+$" (first $words)) | default (toString $default)) }}
{{- end }}
{{- end }}
{{- end }}
{{- $found.port | default "" }}
{{- end }}

{{- /* Ports of the Deployment as JSON: dns (all), health, ready, metrics. An existing Corefile is taken to use CoreDNS' ports. */ -}}
{{- define "dnsserver.ports" -}}
{{- if .Values.existingConfigMap }}
{{- dict "dns" (list 53) "health" "8080" "ready" "8181" "metrics" "9153" | toJson }}
{{- else }}
{{- include "dnsserver.portsOf" (list . .Values.servers 9153) }}
{{- end }}
{{- end }}

{{- define "dnsserver.portsOf" -}}
{{- $root := index . 0 }}
{{- $servers := index . 1 }}
{{- $dns := list }}
{{- range $servers }}{{ $dns = append $dns (int (.port | default 53)) }}{{ end }}
{{- dict "dns" (uniq $dns)
  "health" (include "dnsserver.pluginPort" (list $root $servers 8080 "health"))
  "ready" (include "dnsserver.pluginPort" (list $root $servers 8181 "ready"))
  "metrics" (include "dnsserver.pluginPort" (list $root $servers (index . 2) "prometheus")) | toJson }}
{{- end }}

{{- /* Whether the role has pods, or ServiceImports. */ -}}
{{- define "dnsserver.watchesPods" -}}
{{- include "dnsserver.watches" (list . .Values.rbac.pods "pods\\s+verified") }}
{{- end }}
{{- define "dnsserver.watchesImports" -}}
{{- include "dnsserver.watches" (list . .Values.rbac.serviceImports "multicluster\\s") }}
{{- end }}
{{- define "dnsserver.watches" -}}
{{- $root := index . 0 }}
{{- if eq (toString (index . 1)) "auto" }}
{{- if and (not $root.Values.existingConfigMap) (regexMatch (printf "(?m)^\\s*%s" (index . 2)) (include "dnsserver.corefile" (list $root $root.Values.servers))) }}true{{ end }}
{{- else if index . 1 }}true{{ end }}
{{- end }}

{{- /* The Service's address: given, or found in the cluster with "auto". */ -}}
{{- define "dnsserver.clusterIP" -}}
{{- if eq .Values.service.clusterIP "auto" }}
{{- $there := lookup "v1" "Service" .Release.Namespace .Values.service.name | default dict }}
{{- $api := lookup "v1" "Service" "default" "kubernetes" | default dict }}
{{- if $there.spec }}
{{- $there.spec.clusterIP }}
{{- else if $api.spec }}
{{- $address := $api.spec.clusterIP }}
{{- if contains ":" $address }}{{ regexReplaceAll "1$" $address "a" }}{{ else }}{{ regexReplaceAll "\\.1$" $address ".10" }}{{ end }}
{{- else }}
{{- fail "service.clusterIP: auto found no Service to go by (there is no cluster to look at in `helm template`): give the address that kubelets have as clusterDNS" }}
{{- end }}
{{- else }}
{{- .Values.service.clusterIP }}
{{- end }}
{{- end }}

{{- define "dnsserver.probe" -}}
{{- $values := index . 3 -}}
httpGet:
  {{- with index . 0 }}
  host: {{ . | quote }}
  {{- end }}
  path: {{ index . 1 }}
  port: {{ index . 2 }}
periodSeconds: {{ $values.periodSeconds }}
timeoutSeconds: {{ $values.timeoutSeconds }}
failureThreshold: {{ $values.failureThreshold }}
{{- end }}

{{- /* Startup, liveness and readiness. Takes (root, ports, host). */ -}}
{{- define "dnsserver.probes" -}}
{{- $root := index . 0 }}
{{- $ports := index . 1 }}
{{- $host := index . 2 -}}
{{- if $root.Values.startupProbe.enabled }}
startupProbe:
  {{- include "dnsserver.probe" (list $host "/health" $ports.health $root.Values.startupProbe) | nindent 2 }}
{{- end }}
{{- if $root.Values.livenessProbe.enabled }}
livenessProbe:
  {{- include "dnsserver.probe" (list $host "/health" $ports.health $root.Values.livenessProbe) | nindent 2 }}
{{- end }}
{{- if $root.Values.readinessProbe.enabled }}
readinessProbe:
  {{- include "dnsserver.probe" (list $host "/ready" $ports.ready $root.Values.readinessProbe) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "dnsserver.checkPlugins" -}}
{{- $root := index . 0 }}
{{- $ports := index . 1 }}
{{- $where := index . 2 }}
{{- if and (or $root.Values.livenessProbe.enabled $root.Values.startupProbe.enabled) (not $ports.health) }}
{{- fail (printf "%s: no server block has the plugin health, which livenessProbe and startupProbe ask: add it, or disable them" $where) }}
{{- end }}
{{- if and $root.Values.readinessProbe.enabled (not $ports.ready) }}
{{- fail (printf "%s: no server block has the plugin ready, which readinessProbe asks: add it, or disable the probe" $where) }}
{{- end }}
{{- if and (or $root.Values.prometheus.monitor.enabled $root.Values.prometheus.podMonitor.enabled) (not $ports.metrics) }}
{{- fail (printf "%s: no server block has the plugin prometheus, which is to be scraped: add it" $where) }}
{{- end }}
{{- end }}

{{- /* Contradictions, told before anything is made. */ -}}
{{- define "dnsserver.check" -}}
{{- $v := .Values }}
{{- include "dnsserver.checkPlugins" (list . (include "dnsserver.ports" . | fromJson) "servers") }}
{{- if $v.nodeLocal.enabled }}
{{- include "dnsserver.checkPlugins" (list . (include "dnsserver.portsOf" (list . $v.nodeLocal.servers 9153) | fromJson) "nodeLocal.servers") }}
{{- end }}
{{- if and $v.hpa.enabled $v.autoscaler.enabled }}
{{- fail "hpa and autoscaler would both set the replicas: enable one of them" }}
{{- end }}
{{- if and $v.prometheus.monitor.enabled (not $v.prometheus.service.enabled) }}
{{- fail "prometheus.monitor.enabled needs prometheus.service.enabled: a ServiceMonitor selects a Service" }}
{{- end }}
{{- if and $v.prometheus.monitor.enabled $v.prometheus.podMonitor.enabled }}
{{- fail "prometheus.monitor and prometheus.podMonitor would scrape every pod twice: enable one of them" }}
{{- end }}
{{- if and $v.service.clusterIP $v.service.clusterIPs (ne $v.service.clusterIP (first $v.service.clusterIPs)) }}
{{- fail "service.clusterIP must be the first of service.clusterIPs" }}
{{- end }}
{{- if $v.service.create }}
{{- $there := lookup "v1" "Service" .Release.Namespace $v.service.name | default dict }}
{{- if $there.metadata }}
{{- $owner := index ($there.metadata.annotations | default dict) "meta.helm.sh/release-name" }}
{{- if ne (toString $owner) .Release.Name }}
{{- fail (printf "Service %s/%s is there and not this release's: join it with --set service.create=false, or see docs/migrate-from-coredns.md on adopting it" .Release.Namespace $v.service.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (not $v.service.create) (not $v.isClusterService) (not $v.k8sAppLabelOverride) }}
{{- fail "service.create=false without isClusterService: the pods would belong to no Service; set one of them, or k8sAppLabelOverride" }}
{{- end }}
{{- end }}
