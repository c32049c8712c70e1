{{- define "ipvsproxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "ipvsproxy.fullname" -}}
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

{{- define "ipvsproxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ipvsproxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ipvsproxy.labels" -}}
{{ include "ipvsproxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: service-proxy
app.kubernetes.io/part-of: kube-ipvs-dns
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels and annotations of an object: everybody's, and its own (second and third item of the list). */ -}}
{{- define "ipvsproxy.metadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "ipvsproxy.labels" $root | nindent 2 }}
  {{- with index . 1 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (index . 2) $root.Values.customAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ipvsproxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "ipvsproxy.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "ipvsproxy.image" -}}
{{- $image := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- with .Values.image.digest }}{{ $image = printf "%s@%s" $image . }}{{ end }}
{{- $image }}
{{- end }}

{{- /* The configuration file's documents. */ -}}
{{- define "ipvsproxy.config" -}}
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
{{ toYaml .Values.config }}
{{- end }}

{{- define "ipvsproxy.additions" -}}
apiVersion: ipvsproxy.io/v1alpha1
kind: IPVSProxyConfiguration
{{ toYaml .Values.additions }}
{{- end }}

{{- /* Address and port of the API server as JSON: given, or found in the cluster with "auto". */ -}}
{{- define "ipvsproxy.apiServer" -}}
{{- $host := .Values.k8sServiceHost }}
{{- $port := .Values.k8sServicePort | toString }}
{{- if eq $host "auto" }}
{{- $host = "" }}
{{- $found := dict }}
{{- range list (list "kube-system" "kube-proxy" "kubeconfig.conf") (list "kube-public" "cluster-info" "kubeconfig") }}
{{- if not $found.url }}
{{- $map := lookup "v1" "ConfigMap" (index . 0) (index . 1) | default dict }}
{{- $kubeconfig := index ($map.data | default dict) (index . 2) | default "" | fromYaml }}
{{- range ($kubeconfig.clusters | default list) }}
{{- $_ := set $found "url" (urlParse .cluster.server) }}
{{- end }}
{{- end }}
{{- end }}
{{- if not $found.url }}
{{- fail "k8sServiceHost: auto found no kube-system/kube-proxy and no kube-public/cluster-info (there is no cluster to look at in `helm template`): give the API server's address" }}
{{- end }}
{{- $host = $found.url.hostname }}
{{- $given := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $found.url.host) }}
{{- $port = $port | default $given }}
{{- end }}
{{- if $host }}
{{- dict "host" $host "port" ($port | default "443") | toJson }}
{{- end }}
{{- end }}

{{- /* Where a probe finds a server that listens at an address: the wildcard and loopback by loopback. */ -}}
{{- define "ipvsproxy.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" }}
{{- if has $host (list "" "0.0.0.0" "[::]" "[::1]") }}127.0.0.1{{ else }}{{ $host | trimPrefix "[" | trimSuffix "]" }}{{ end }}
{{- end }}

{{- define "ipvsproxy.port" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{- /* The options that say where settings come from; for the daemon and for the container that prepares the node. */ -}}
{{- define "ipvsproxy.configArgs" -}}
{{- if .Values.existingConfigMap }}
- --config=/var/lib/kube-proxy/config.conf
{{- if .Values.additions }}
- --additions=/etc/ipvsproxy/additions.yaml
{{- end }}
{{- else }}
- --config=/etc/ipvsproxy/config.yaml
{{- end }}
{{- if .Values.kubeconfigConfigMap }}
- --kubeconfig=/var/lib/kube-proxy/kubeconfig.conf
{{- end }}
- --healthz-bind-address={{ .Values.healthz.bindAddress }}
- --metrics-bind-address={{ .Values.metrics.bindAddress }}
{{- end }}

{{- define "ipvsproxy.ownConfigMap" -}}
{{- if or (not .Values.existingConfigMap) .Values.additions }}true{{ end }}
{{- end }}

{{- define "ipvsproxy.probe" -}}
{{- $values := index . 2 -}}
httpGet:
  host: {{ include "ipvsproxy.probeHost" (index . 0) | quote }}
  path: {{ index . 1 }}
  port: {{ include "ipvsproxy.port" (index . 0) }}
periodSeconds: {{ $values.periodSeconds }}
timeoutSeconds: {{ $values.timeoutSeconds }}
failureThreshold: {{ $values.failureThreshold }}
{{- end }}

{{- /* Contradictions, told before anything is made. */ -}}
{{- define "ipvsproxy.check" -}}
{{- $v := .Values }}
{{- if and $v.existingConfigMap (ne (toJson (omit $v.config "mode")) "{}") }}
{{- fail "config and existingConfigMap exclude each other: write the fields into that ConfigMap, or leave existingConfigMap empty" }}
{{- end }}
{{- if and $v.existingConfigMap $v.kubeconfigConfigMap }}
{{- fail "existingConfigMap and kubeconfigConfigMap exclude each other: the first brings its kubeconfig.conf along" }}
{{- end }}
{{- if and $v.k8sServiceHost (or $v.existingConfigMap $v.kubeconfigConfigMap) }}
{{- fail "k8sServiceHost has no effect beside a kubeconfig (existingConfigMap, kubeconfigConfigMap): keep one of them" }}
{{- end }}
{{- range list "healthzBindAddress" "metricsBindAddress" }}
{{- if hasKey $v.config . }}
{{- fail (printf "config.%s: write %s.bindAddress instead, so that probes and scrapes agree with it" . (trimSuffix "BindAddress" .)) }}
{{- end }}
{{- end }}
{{- if and $v.prometheus.monitor.enabled (not $v.prometheus.service.enabled) }}
{{- fail "prometheus.monitor.enabled needs prometheus.service.enabled: a ServiceMonitor selects a Service" }}
{{- end }}
{{- if and (or $v.prometheus.monitor.enabled $v.prometheus.podMonitor.enabled) (regexMatch "^(127\\.|\\[::1\\])" $v.metrics.bindAddress) }}
{{- fail (printf "metrics.bindAddress %s cannot be scraped from another host: write 0.0.0.0:%s" $v.metrics.bindAddress (include "ipvsproxy.port" $v.metrics.bindAddress)) }}
{{- end }}
{{- if and $v.prometheus.monitor.enabled $v.prometheus.podMonitor.enabled }}
{{- fail "prometheus.monitor and prometheus.podMonitor would scrape every pod twice: enable one of them" }}
{{- end }}
{{- if and $v.modules.load (has "SYS_MODULE" (($v.securityContext.capabilities | default dict).add | default list)) }}
{{- fail "securityContext.capabilities.add: SYS_MODULE is given to the init container by modules.load; the daemon needs none" }}
{{- end }}
{{- end }}

{{- define "ipvsproxy.configMounts" -}}
{{- if include "ipvsproxy.ownConfigMap" . }}
- name: config
  mountPath: /etc/ipvsproxy
  readOnly: true
{{- end }}
{{- if or .Values.existingConfigMap .Values.kubeconfigConfigMap }}
# Where kube-proxy's own configuration expects itself: its clientConnection.kubeconfig is an absolute path.
- name: kube-proxy
  mountPath: /var/lib/kube-proxy
  readOnly: true
{{- end }}
# Tells which schedulers this kernel has; also for modprobe.
- name: modules
  mountPath: /lib/modules
  readOnly: true
{{- end }}
