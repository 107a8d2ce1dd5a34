{{- define "edge-proxy.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}{{ if not (contains "edge-proxy" .Release.Name) }}-edge-proxy{{ end }}
{{- end }}

{{- define "edge-proxy.selector" -}}
app.kubernetes.io/name: edge-proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "edge-proxy.labels" -}}
{{ include "edge-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "edge-proxy.secret" -}}
{{- .Values.existingSecret | default (include "edge-proxy.name" .) }}
{{- end }}

{{- /* The chart's own settings win over those of the values: the probes and ports depend on them. */ -}}
{{- define "edge-proxy.config" -}}
{{- $server := merge (dict "host" "0.0.0.0" "port" 8000) (.Values.config.server | default dict) }}
{{- /* The names of the admin Service; pods and port-forwards are asked by address. */}}
{{- $admin := printf "%s-admin" (include "edge-proxy.name" .) }}
{{- $inside := printf "%s.%s" $admin .Release.Namespace }}
{{- $hosts := list $admin $inside (printf ".%s.svc" $inside) (printf ".%s.svc.cluster.local" $inside) }}
{{- $hosts = concat $hosts (dig "admin" "allowed_hosts" list .Values.config) }}
{{- $own := dict "server" $server "cache_dir" "/cache" "admin" (dict "host" "0.0.0.0" "port" 8001 "allowed_hosts" $hosts) }}
{{- merge $own (omit .Values.config "server" "cache_dir" "admin") | toPrettyJson }}
{{- end }}

{{/* Where the kubelet asks for health: it shows no certificate, so where callers must, the admin port answers. */}}
{{- define "edge-proxy.door" -}}
{{- $tls := dig "server" "tls" dict .Values.config -}}
{{- if $tls.client_ca -}}
port: admin
{{- else if $tls.cert -}}
port: http
scheme: HTTPS
{{- else -}}
port: http
{{- end -}}
{{- end }}
