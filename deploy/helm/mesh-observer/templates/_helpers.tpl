{{- define "mesh-observer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* 56 characters leave room for suffixes: names of DaemonSets become label values, which have 63. */}}
{{- define "mesh-observer.fullname" -}}
{{- $name := include "mesh-observer.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 56 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 56 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 56 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "mesh-observer.selector" -}}
app.kubernetes.io/name: {{ include "mesh-observer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mesh-observer.labels" -}}
{{ include "mesh-observer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* Labels of the pods of a component. Pods that run once would not end with a sidecar, and none needs one. */}}
{{- define "mesh-observer.podLabels" -}}
{{ include "mesh-observer.labels" .root }}
app.kubernetes.io/component: {{ .component }}
sidecar.istio.io/inject: "false"
{{- end }}

{{- define "mesh-observer.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "mesh-observer.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "mesh-observer.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- /* ADDRESS:PORT as the observer reads it. */}}
{{- define "mesh-observer.listen" -}}
{{- $address := .Values.listen.address }}
{{- if contains ":" $address }}[{{ $address }}]{{ else }}{{ $address }}{{ end }}:{{ .Values.listen.port }}
{{- end }}

{{- /* Where the node itself reaches it: the address, or loopback if it is every address. */}}
{{- define "mesh-observer.reachable" -}}
{{- $loopback := dict "0.0.0.0" "127.0.0.1" "::" "::1" }}
{{- get $loopback .Values.listen.address | default .Values.listen.address }}
{{- end }}

{{- /* Not empty if /metrics is served over TLS. */}}
{{- define "mesh-observer.tls" -}}
{{- if and .Values.webConfig.existingSecret .Values.webConfig.tls }}true{{ end }}
{{- end }}

{{- /* An HTTP check of a path. The kubelet uses the node's address unless the observer listens on another only. */}}
{{- define "mesh-observer.probe" -}}
{{- $address := .root.Values.listen.address -}}
httpGet: {path: {{ .path }}, port: metrics{{ if not (has $address (list "0.0.0.0" "::")) }}, host: {{ $address | quote }}{{ end }}{{ if include "mesh-observer.tls" .root }}, scheme: HTTPS{{ end }}}
{{- end }}

{{- /* Fields of every pod of the chart. */}}
{{- define "mesh-observer.pod" -}}
{{- with .Values.priorityClassName -}}
priorityClassName: {{ . }}
{{ end }}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{ end }}
{{- with .Values.affinity -}}
affinity: {{- toYaml . | nindent 2 }}
{{ end -}}
nodeSelector: {{- toYaml .Values.nodeSelector | nindent 2 }}
{{- end }}

{{- /* Tolerations of pods that run once: not of everything, or they might be placed on a node that is down. */}}
{{- define "mesh-observer.tolerationsOfOne" -}}
tolerations:
  - {key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}
  {{- range .Values.tolerations }}
  {{- if .key }}
  - {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}

{{- /* A container that needs nothing of its node. */}}
{{- define "mesh-observer.unprivileged" -}}
runAsUser: 65534
runAsGroup: 65534
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
capabilities: {drop: [ALL]}
{{- end }}
