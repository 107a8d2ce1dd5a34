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
{{- $own := dict "server" $server "cache_dir" "/cache" "admin" (dict "host" "0.0.0.0" "port" 8001) }}
{{- merge $own (omit .Values.config "server" "cache_dir" "admin") | toPrettyJson }}
{{- end }}
