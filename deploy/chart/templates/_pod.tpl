{{/* Parts of the pods of the daemon and of the check before the installation. */}}

{{/* Environment of the container. */}}
{{- define "lota.env" -}}
- name: LOTA_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: LOTA_NODE_ADDRESS
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
# Kubernetes 1.35 and later copy this label from the node to its pods; on older versions it is empty,
# and the node has no zone.
- name: LOTA_NODE_ZONE
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['topology.kubernetes.io/zone']
- name: LOTA_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- with .Values.env }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* Privileges of the container. */}}
{{- define "lota.securityContext" -}}
{{- if .Values.hardened }}
# As root, since added capabilities apply only to root.
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [BPF, NET_ADMIN, NET_BIND_SERVICE, PERFMON]
seccompProfile:
  {{- toYaml .Values.hardening.seccompProfile | nindent 2 }}
{{- with .Values.hardening.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- else }}
privileged: true
{{- end }}
{{- end }}

{{/* Folders of the container. */}}
{{- define "lota.volumeMounts" -}}
- name: config
  mountPath: /etc/lota
  readOnly: true
- name: run
  mountPath: /run/lota
  {{- if .Values.preflight.enabled }}
  readOnly: true
  {{- end }}
# Not /sys/fs/bpf, since AppArmor's default profile for containers denies writing there.
- name: bpffs
  mountPath: /run/bpf
  {{- if .Values.preflight.enabled }}
  readOnly: true
  {{- end }}
# Which cgroup is which pod's.
- name: cgroup
  mountPath: /run/cgroup
  readOnly: true
{{- range $place, $disk := .Values.config.cache.disks }}
- name: cache-{{ $place }}
  mountPath: {{ $disk.folder }}
{{- end }}
{{- end }}

{{/* Volumes of the pod. */}}
{{- define "lota.volumes" -}}
# Not optional: without the cluster key the pod does not start.
- name: config
  projected:
    defaultMode: 0400
    sources:
      - configMap:
          name: {{ include "lota.name" . }}
      - secret:
          name: {{ include "lota.clusterKeySecret" . }}
          items:
            - key: {{ .Values.clusterKey.key }}
              path: cluster-secret
      {{- with .Values.backendCredential.existingSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: credential.toml
              path: credential.toml
      {{- end }}
      {{- with .Values.reSignClients.existingSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: clients.toml
              path: clients.toml
      {{- end }}
      {{- with .Values.peerTls.existingSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: tls.crt
              path: peers-tls/tls.crt
            - key: tls.key
              path: peers-tls/tls.key
            - key: ca.crt
              path: peers-tls/ca.crt
      {{- end }}
      {{- with .Values.peerTls.crlConfigMap }}
      - configMap:
          name: {{ . }}
          items:
            - key: ca.crl
              path: peers-tls/ca.crl
      {{- end }}
- name: run
  hostPath:
    path: /run/lota
    type: DirectoryOrCreate
# Mounted by systemd. If it is missing, the daemon exits with an error; run: mount -t bpf bpf /sys/fs/bpf
- name: bpffs
  hostPath:
    path: /sys/fs/bpf
    type: Directory
- name: cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
{{- range $place, $disk := .Values.config.cache.disks }}
- name: cache-{{ $place }}
  hostPath:
    path: {{ $disk.folder }}
    type: {{ $.Values.cacheHostPathType }}
{{- end }}
{{- end }}

{{/* Where pods run, and from where their image comes. */}}
{{- define "lota.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
