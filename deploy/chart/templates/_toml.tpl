{{/* A value, on one line. Helm's own toToml writes whole numbers as 7480.0, which no port is. */}}
{{- define "lota.toml.value" -}}
{{- if kindIs "string" . -}}
{{ toRawJson . }}
{{- else if kindIs "float64" . -}}
{{ if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $pairs = append $pairs (printf "%s = %s" (include "lota.toml.key" $key) (include "lota.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{ if $pairs }}{ {{ join ", " $pairs }} }{{ else }}{}{{ end }}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "lota.toml.value" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{- define "lota.toml.key" -}}
{{ if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end }}
{{- end }}

{{/* A table: first its values, then the tables in it. Takes { name, table }. */}}
{{- define "lota.toml.table" -}}
{{- $name := .name -}}
{{- $table := .table -}}
[{{ $name }}]
{{- range $key, $value := $table }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (include "lota.toml.isTables" $value)) }}
{{ include "lota.toml.key" $key }} = {{ include "lota.toml.value" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := $table }}
{{- if kindIs "map" $value }}

{{ include "lota.toml.table" (dict "name" (printf "%s.%s" $name $key) "table" $value) }}
{{- else if include "lota.toml.isTables" $value }}
{{- range $value }}

[[{{ $name }}.{{ $key }}]]
{{- range $key, $value := . }}
{{ include "lota.toml.key" $key }} = {{ include "lota.toml.value" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Is it a list of maps? */}}
{{- define "lota.toml.isTables" -}}
{{- if kindIs "slice" . }}{{ if . }}{{ if kindIs "map" (first .) }}true{{ end }}{{ end }}{{ end -}}
{{- end }}

{{/* The daemon's configuration: the values of config, and the paths that this chart sets. */}}
{{- define "lota.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- if not ($config.gateway).endpoint }}
{{- $example := "--set config.gateway.endpoint=http://s3.internal:9000" }}
{{- fail (printf "\n\nconfig.gateway.endpoint is missing; set it to the S3 gateway that authorizes every request:\n    %s\n" $example) }}
{{- end }}
{{- if ne (empty $config.backend) (empty .Values.backendCredential.existingSecret) }}
{{- fail "\n\nconfig.backend and backendCredential.existingSecret must be set together\n" }}
{{- end }}
{{- if ne (empty ($config.gateway).re_sign) (empty .Values.reSignClients.existingSecret) }}
{{- fail "\n\nconfig.gateway.re_sign and reSignClients.existingSecret must be set together\n" }}
{{- end }}
{{- if and ($config.peers).tls (not .Values.peerTls.existingSecret) }}
{{- fail "\n\nconfig.peers.tls needs peerTls.existingSecret, the Secret with the certificates of the nodes\n" }}
{{- end }}
{{- if and .Values.peerTls.crlConfigMap (not .Values.peerTls.existingSecret) }}
{{- fail "\n\npeerTls.crlConfigMap needs peerTls.existingSecret, the Secret with the certificates of the nodes\n" }}
{{- end }}
{{- if $config.backend }}
{{- $_ := set $config.backend "credential_file" "/etc/lota/credential.toml" }}
{{- end }}
{{- if ($config.gateway).re_sign }}
{{- $_ := set $config.gateway.re_sign "clients_file" "/etc/lota/clients.toml" }}
{{- end }}
{{- $_ := set $config "node" ($config.node | default dict) }}
{{- $datapath := $config.datapath | default dict }}
{{- $_ := set $datapath "bpffs_path" "/run/bpf/lota" }}
{{- $_ := set $config "datapath" $datapath }}
{{- $access := $config.access | default dict }}
{{- $_ := set $access "cgroup_path" (printf "/run/cgroup%s" .Values.kubeletCgroupRoot) }}
{{- $_ := set $config "access" $access }}
{{- $peers := $config.peers | default dict }}
{{- $_ := set $peers "secret_file" "/etc/lota/cluster-secret" }}
{{- if .Values.peerTls.existingSecret }}
{{- $tls := $peers.tls | default dict }}
{{- $_ := set $tls "server_name" ($tls.server_name | default "lota-peers") }}
{{- $_ := set $tls "certificate" "/etc/lota/peers-tls/tls.crt" }}
{{- $_ := set $tls "key" "/etc/lota/peers-tls/tls.key" }}
{{- $_ := set $tls "ca" "/etc/lota/peers-tls/ca.crt" }}
{{- if .Values.peerTls.crlConfigMap }}
{{- $_ := set $tls "crl" "/etc/lota/peers-tls/ca.crl" }}
{{- end }}
{{- $_ := set $peers "tls" $tls }}
{{- end }}
{{- $_ := set $config "peers" $peers }}
{{- $kubernetes := dict "namespace" .Release.Namespace "service" (include "lota.name" .) }}
{{- if .Values.nodeTaint.enabled }}
{{- $_ := set $kubernetes "taint" .Values.nodeTaint.key }}
{{- end }}
{{- $_ := set $config "kubernetes" $kubernetes -}}
# deploy/lota.toml explains every key. The node's name, address and zone come from the environment.
{{- range $name := splitList " " "node endpoint datapath gateway backend cache fill peers kubernetes admin limits access" }}
{{- if or (eq $name "node") (get $config $name) }}

{{ include "lota.toml.table" (dict "name" $name "table" (get $config $name)) }}
{{- end }}
{{- end }}
{{- end }}
