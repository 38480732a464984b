{{/* Names */}}
{{- define "sevenfold.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sevenfold.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sevenfold.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "sevenfold.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "sevenfold.image" -}}
{{- $image := .Values.image }}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* Labels. Selectors are immutable: they hold nothing that a value other than nameOverride can change. */}}
{{- define "sevenfold.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sevenfold.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/* Labels of an object, as YAML. Call with the root, or with (dict "root" $ "component" "…" "labels" …). */}}
{{- define "sevenfold.labels" -}}
{{- $root := default . .root }}
{{- $own := dict
    "app.kubernetes.io/name" (include "sevenfold.name" $root)
    "app.kubernetes.io/instance" $root.Release.Name
    "app.kubernetes.io/component" (default "server" .component)
    "app.kubernetes.io/version" ($root.Chart.AppVersion | trunc 63)
    "app.kubernetes.io/part-of" "sevenfold"
    "app.kubernetes.io/managed-by" $root.Release.Service
    "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63) }}
{{- toYaml (mergeOverwrite (dict) $root.Values.commonLabels (default (dict) .labels) $own) }}
{{- end }}

{{/* Metadata of an object. Call with (dict "root" $ "name" "…" "component" "…" "labels" … "annotations" …). */}}
{{- define "sevenfold.metadata" -}}
name: {{ default (include "sevenfold.fullname" .root) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sevenfold.labels" . | nindent 2 }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels of a pod: without versions, so that only what a pod runs restarts it. */}}
{{- define "sevenfold.podLabels" -}}
{{- $own := include "sevenfold.selectorLabels" . | fromYaml }}
{{- toYaml (mergeOverwrite (dict) .Values.commonLabels .Values.podLabels $own) }}
{{- end }}

{{/* Fails where values contradict each other in a way that a schema cannot express. */}}
{{- define "sevenfold.validate" -}}
{{- $values := .Values }}
{{- $scaling := $values.autoscaling }}
{{- if and (eq $scaling.mode "hpa") $scaling.keda }}
{{- fail "autoscaling.keda is set, but autoscaling.mode is hpa: KEDA makes an HPA of its own, and two would fight over the replicas. Remove autoscaling.keda, or set autoscaling.mode to keda." }}
{{- end }}
{{- if and (eq $scaling.mode "keda") $scaling.hpa }}
{{- fail "autoscaling.hpa is set, but autoscaling.mode is keda: KEDA makes an HPA of its own, and two would fight over the replicas. Remove autoscaling.hpa, or set autoscaling.mode to hpa." }}
{{- end }}
{{- if and (ne $scaling.mode "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas is %d, but autoscaling.maxReplicas is %d: raise maxReplicas." (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- end }}
{{- if eq (int $values.containerPorts.http) (int $values.containerPorts.admin) }}
{{- fail "containerPorts.http and containerPorts.admin are the same port: choose two." }}
{{- end }}
{{- if eq (int $values.service.ports.http) (int $values.service.ports.admin) }}
{{- fail "service.ports.http and service.ports.admin are the same port: choose two." }}
{{- end }}
{{- include "sevenfold.validateModels" . }}
{{- if and $values.monitoring.serviceMonitor.enabled $values.monitoring.podMonitor.enabled }}
{{- fail "monitoring.serviceMonitor and monitoring.podMonitor are both enabled: every pod would be scraped twice. Enable one." }}
{{- end }}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) }}
{{- fail "ingress.enabled is true, but ingress.hosts is empty: give at least one host." }}
{{- end }}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled is true, but httpRoute.parentRefs is empty: name the Gateway." }}
{{- end }}
{{- end }}

{{- define "sevenfold.validateModels" -}}
{{- $models := .Values.models }}
{{- if and (eq $models.source "pvc") (not $models.pvc.create) (not $models.pvc.existingClaim) }}
{{- fail "models.source is pvc: name the claim in models.pvc.existingClaim, or set models.pvc.create." }}
{{- end }}
{{- if eq $models.source "image" }}
{{- if not $models.image.reference }}
{{- fail "models.source is image: name the image with the models in models.image.reference." }}
{{- end }}
{{- if semverCompare "<1.31-0" .Capabilities.KubeVersion.Version }}
{{- fail (printf "models.source is image, but Kubernetes %s has no image volumes: they need 1.31 or newer. Use fetch, pvc or baked." .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- if eq $models.source "fetch" }}
{{- if not (and $models.fetch.from $models.fetch.names) }}
{{- fail "models.source is fetch: say where from in models.fetch.from, and which in models.fetch.names." }}
{{- end }}
{{- range $name, $_ := $models.fetch.sha256 }}
{{- if not (has $name $models.fetch.names) }}
{{- fail (printf "models.fetch.sha256 has %s, which models.fetch.names lacks: correct one of them." $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A setting as text. Helm reads every number as a float, and would write 20000000 as 2e+07. */}}
{{- define "sevenfold.settingText" -}}
{{- if kindIs "bool" . }}{{ ternary "on" "off" . }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "map" . }}
{{- $pairs := list }}
{{- range $name, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $name (include "sevenfold.settingText" $value)) }}{{ end }}
{{- join "," $pairs }}
{{- else if kindIs "float64" . }}
{{- if eq . (floor .) }}{{ printf "%d" (int64 .) }}{{ else }}{{ regexReplaceAll "[.]?0+$" (printf "%.9f" .) "" }}{{ end }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{/* Settings of the server that are not secret, as YAML of a map from variable to text. */}}
{{- define "sevenfold.settings" -}}
{{- $settings := dict
    "SEVENFOLD_HOST" "0.0.0.0"
    "SEVENFOLD_LOG_FORMAT" "json"
    "SEVENFOLD_PORT" (.Values.containerPorts.http | toString)
    "SEVENFOLD_ADMIN_PORT" (.Values.containerPorts.admin | toString)
    "SEVENFOLD_MODELS" .Values.models.mountPath
    "SEVENFOLD_DRAIN_SECONDS" (include "sevenfold.settingText" .Values.lifecycle.drainSeconds)
    "SEVENFOLD_GRACE_SECONDS" (include "sevenfold.settingText" .Values.lifecycle.graceSeconds) }}
{{- if .Values.gpu.enabled }}{{ $_ := set $settings "SEVENFOLD_DEVICE" "cuda" }}{{ end }}
{{- with .Values.auth.apiKeys }}{{ if .existingSecret }}
{{- $_ := set $settings "SEVENFOLD_API_KEYS_FILE" (printf "/etc/sevenfold/api-keys/%s" .key) }}
{{- end }}{{ end }}
{{- if .Values.auth.adminToken.existingSecret }}{{ $_ := set $settings "SEVENFOLD_ADMIN" "on" }}{{ end }}
{{- with .Values.corsOrigins }}{{ $_ := set $settings "SEVENFOLD_CORS_ORIGINS" (join "," .) }}{{ end }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $settings "SEVENFOLD_TLS_CERT" "/etc/sevenfold/tls/tls.crt" }}
{{- $_ := set $settings "SEVENFOLD_TLS_KEY" "/etc/sevenfold/tls/tls.key" }}
{{- end }}
{{- range $name, $value := .Values.server }}
{{- $text := include "sevenfold.settingText" $value }}
{{- /* An empty list, map or text means the same as its absence: the default. */}}
{{- if ne $text "" }}{{ $_ := set $settings (printf "SEVENFOLD_%s" ($name | snakecase | upper)) $text }}{{ end }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/* Schemes of the two ports. TLS covers both: the server has one pair of files. */}}
{{- define "sevenfold.httpScheme" -}}
{{ ternary "https" "http" (not (empty .Values.tls.existingSecret)) }}
{{- end }}
{{- define "sevenfold.adminScheme" -}}
{{ include "sevenfold.httpScheme" . }}
{{- end }}

{{/* The Service that has the port admin, and that port. */}}
{{- define "sevenfold.adminService" -}}
{{ include "sevenfold.fullname" . }}{{ if ne .Values.service.type "ClusterIP" }}-admin{{ end }}
{{- end }}
{{- define "sevenfold.adminPort" -}}
- name: admin
  port: {{ .Values.service.ports.admin }}
  targetPort: admin
  protocol: TCP
  appProtocol: {{ include "sevenfold.adminScheme" . }}
{{- end }}

{{/* Variables of the server's container: the chart's, without those that extraEnv replaces, then extraEnv. */}}
{{- define "sevenfold.env" -}}
{{- $own := list }}
{{- with .Values.auth.adminToken }}{{ if .existingSecret }}
{{- $own = append $own (dict "name" "SEVENFOLD_ADMIN_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" .existingSecret "key" .key))) }}
{{- end }}{{ end }}
{{- if .Values.tracing.endpoint }}{{ $own = concat $own (include "sevenfold.tracingEnv" . | fromYamlArray) }}{{ end }}
{{- $replaced := list }}
{{- range .Values.extraEnv }}
{{- if has .name $replaced }}{{ fail (printf "extraEnv has %s twice: remove one." .name) }}{{ end }}
{{- $replaced = append $replaced .name }}
{{- end }}
{{- $all := list }}
{{- range $own }}{{ if not (has .name $replaced) }}{{ $all = append $all . }}{{ end }}{{ end }}
{{- with concat $all .Values.extraEnv }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "sevenfold.tracingEnv" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: http/protobuf}
- name: OTEL_SERVICE_NAME
  value: {{ include "sevenfold.fullname" . }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .Values.tracing.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .Values.tracing.samplerArg | quote }}
{{- $attributes := mergeOverwrite (dict "k8s.namespace.name" .Release.Namespace "k8s.deployment.name" (include "sevenfold.fullname" .)) .Values.tracing.resourceAttributes }}
{{- $pairs := list "k8s.pod.name=$(POD_NAME)" "k8s.node.name=$(NODE_NAME)" "service.instance.id=$(POD_NAME)" }}
{{- range $name, $value := $attributes }}{{ $pairs = append $pairs (printf "%s=%s" $name $value) }}{{ end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $pairs | quote }}
{{- with .Values.tracing.headers }}{{ if .existingSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}{{ end }}
{{- end }}

{{/* Fetches and checks the models, and ends. The only place that knows the form of the command. */}}
{{- define "sevenfold.fetchContainer" -}}
{{- $fetch := .Values.models.fetch }}
{{- $pairs := list }}
{{- range $name, $checksum := $fetch.sha256 }}{{ $pairs = append $pairs (printf "%s=%s" $name $checksum) }}{{ end }}
name: fetch-models
image: {{ include "sevenfold.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - fetch
  - --from
  - {{ $fetch.from | quote }}
  - --to
  - {{ .Values.models.mountPath | quote }}
  {{- with $pairs }}
  - --sha256
  - {{ join "," . | quote }}
  {{- end }}
  {{- if $fetch.token.existingSecret }}
  - --token-file
  - {{ printf "/etc/sevenfold/fetch/%s" $fetch.token.key | quote }}
  {{- end }}
  {{- range $fetch.names }}
  - {{ . | quote }}
  {{- end }}
{{- with $fetch.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $fetch.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $fetch.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: models, mountPath: {{ .Values.models.mountPath }}}
  - {name: tmp, mountPath: /tmp}
  {{- if $fetch.token.existingSecret }}
  - {name: fetch-token, mountPath: /etc/sevenfold/fetch, readOnly: true}
  {{- end }}
{{- end }}

{{- define "sevenfold.modelsVolume" -}}
{{- $models := .Values.models }}
{{- if eq $models.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-models" (include "sevenfold.fullname" .)) $models.pvc.existingClaim }}
    readOnly: true
{{- else if eq $models.source "image" }}
- name: models
  image:
    reference: {{ $models.image.reference }}
    pullPolicy: {{ $models.image.pullPolicy }}
{{- else if eq $models.source "fetch" }}
- name: models
  emptyDir: {sizeLimit: {{ $models.fetch.sizeLimit }}}
{{- with $models.fetch.token.existingSecret }}
- name: fetch-token
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}

{{- define "sevenfold.modelsMount" -}}
{{- $models := .Values.models }}
{{- if ne $models.source "baked" }}
{{- $subPath := "" }}
{{- if eq $models.source "pvc" }}{{ $subPath = $models.pvc.subPath }}{{ end }}
{{- if eq $models.source "image" }}{{ $subPath = $models.image.subPath }}{{ end }}
- name: models
  mountPath: {{ $models.mountPath }}
  readOnly: true
  {{- with $subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A probe. Call with (dict "root" $ "probe" .Values.probes.… "path" "…" "failureThreshold" …). */}}
{{- define "sevenfold.probe" -}}
{{- if .probe.custom }}
{{- toYaml .probe.custom }}
{{- else -}}
httpGet:
  path: {{ .path }}
  port: admin
  {{- if eq (include "sevenfold.adminScheme" .root) "https" }}
  scheme: HTTPS
  {{- end }}
periodSeconds: {{ .probe.periodSeconds }}
timeoutSeconds: {{ .probe.timeoutSeconds }}
failureThreshold: {{ .failureThreshold }}
{{- end }}
{{- end }}

{{- define "sevenfold.lifecycle" -}}
{{- $seconds := int .Values.lifecycle.preStopSeconds }}
{{- if .Values.lifecycle.hooks }}
{{- toYaml .Values.lifecycle.hooks }}
{{- else if $seconds }}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version -}}
preStop:
  sleep: {seconds: {{ $seconds }}}
{{- else -}}
preStop:
  exec: {command: [python, -c, {{ printf "import time; time.sleep(%d)" $seconds | quote }}]}
{{- end }}
{{- end }}
{{- end }}

{{- define "sevenfold.terminationGracePeriod" -}}
{{- $lifecycle := .Values.lifecycle }}
{{- $needed := add (int $lifecycle.preStopSeconds) (ceil $lifecycle.drainSeconds | int) (ceil $lifecycle.graceSeconds | int) 5 }}
{{- $given := $lifecycle.terminationGracePeriodSeconds }}
{{- if kindIs "invalid" $given }}{{ $needed }}
{{- else if lt (int $given) (int $needed) }}
{{- fail (printf "lifecycle.terminationGracePeriodSeconds is %d, but stopping takes up to %d s (preStopSeconds + drainSeconds + graceSeconds + 5): raise it, or leave it out." (int $given) (int $needed)) }}
{{- else }}{{ int $given }}
{{- end }}
{{- end }}

{{/* The least number of replicas. */}}
{{- define "sevenfold.minReplicas" -}}
{{ ternary .Values.replicaCount .Values.autoscaling.minReplicas (eq .Values.autoscaling.mode "none") | int }}
{{- end }}

{{/* Port of a URL, where it is not its scheme's: for network policies. */}}
{{- define "sevenfold.urlPort" -}}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- default (ternary "80" "443" (eq $url.scheme "http")) $port }}
{{- end }}
