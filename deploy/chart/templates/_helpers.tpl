{{/* Names. */}}
{{- define "lota.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end }}

{{- define "lota.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "lota.name" .) -}}
{{- end }}

{{- define "lota.clusterKeySecret" -}}
{{- .Values.clusterKey.existingSecret | default (printf "%s-cluster-key" (include "lota.name" .)) -}}
{{- end }}

{{- define "lota.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What a selector may use: it can never change. */}}
{{- define "lota.selector" -}}
app.kubernetes.io/name: lota
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ ternary "preflight" "node" .Values.preflight.enabled }}
{{- end }}

{{- define "lota.labels" -}}
{{ include "lota.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: lota
{{- end }}

{{/* The port at the end of an address. */}}
{{- define "lota.port" -}}
{{- splitList ":" . | last -}}
{{- end }}

{{/* The port for pods, if there is one. */}}
{{- define "lota.metricsPort" -}}
{{- with (.Values.config.admin).metrics_listen }}{{ include "lota.port" . }}{{ end -}}
{{- end }}

{{/* A monitor without something to ask would only alarm. */}}
{{- define "lota.metricsPortNeeded" -}}
{{- $port := include "lota.metricsPort" . -}}
{{- if not $port }}{{ fail "podMonitor and serviceMonitor need config.admin.metrics_listen" }}{{ end -}}
{{- $port -}}
{{- end }}
