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

{{- /* Settings of the chart override those of the values: probes and ports depend on them. */ -}}
{{- define "edge-proxy.config" -}}
{{- $server := merge (dict "host" "0.0.0.0" "port" 8000) (.Values.config.server | default dict) }}
{{- /* The names of the admin Service. Requests to pods and port-forwards use addresses, which are always allowed. */}}
{{- $admin := printf "%s-admin" (include "edge-proxy.name" .) }}
{{- $inside := printf "%s.%s" $admin .Release.Namespace }}
{{- $hosts := list $admin $inside (printf ".%s.svc" $inside) (printf ".%s.svc.cluster.local" $inside) }}
{{- $hosts = concat $hosts (dig "admin" "allowed_hosts" list .Values.config) }}
{{- $own := dict "server" $server "cache_dir" "/cache" "admin" (dict "host" "0.0.0.0" "port" 8001 "allowed_hosts" $hosts) }}
{{- merge $own (omit .Values.config "server" "cache_dir" "admin") | toPrettyJson }}
{{- end }}

{{/* The port for probes. The kubelet has no client certificate: if client_ca is set, it uses the admin port. */}}
{{- define "edge-proxy.probe" -}}
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
