{{/* Resources of the server, with its GPUs. */}}
{{- define "sevenfold.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.enabled }}
{{- $_ := set $resources "limits" (mergeOverwrite (dict) (default (dict) $resources.limits) (dict .Values.gpu.resourceName .Values.gpu.count)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Where pods may run: node selector, tolerations, affinity and spreading. */}}
{{- define "sevenfold.scheduling" -}}
{{- $nodes := deepCopy .Values.nodeSelector }}
{{- $tolerations := .Values.tolerations }}
{{- if .Values.gpu.enabled }}
{{- with .Values.gpu.productSelector }}{{ $_ := set $nodes "nvidia.com/gpu.product" . }}{{ end }}
{{- $tolerations = concat $tolerations .Values.gpu.tolerations }}
{{- end }}
{{- with $nodes }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .Values.topologySpreadConstraints | nindent 2 }}
{{- else if .Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
    nodeTaintsPolicy: Honor    # nodes that the pods may not use are no empty domains
    labelSelector:
      matchLabels:
        {{- include "sevenfold.selectorLabels" $ | nindent 8 }}
    # Each revision is spread by itself, so that a rollout does not leave all new pods on one node.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}
