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

{{- define "edge-proxy.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "edge-proxy.name" .) }}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "edge-proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* The configuration without keys. Settings of the chart override those of the values: probes and ports depend on them. */ -}}
{{- define "edge-proxy.settings" -}}
{{- $server := merge (dict "host" "0.0.0.0" "port" 8000) (.Values.config.server | default dict) }}
{{- /* The names of the admin Service. Requests to pods and port-forwards use addresses, which are always allowed. */}}
{{- $admin := printf "%s-admin" (include "edge-proxy.name" .) }}
{{- $inside := printf "%s.%s" $admin .Release.Namespace }}
{{- $hosts := list $admin $inside (printf ".%s.svc" $inside) (printf ".%s.svc.cluster.local" $inside) }}
{{- $hosts = concat $hosts (dig "admin" "allowed_hosts" list .Values.config) }}
{{- $own := dict "server" $server "cache_dir" "/cache" "admin" (dict "host" "0.0.0.0" "port" 8001 "allowed_hosts" $hosts) }}
{{- merge $own (omit .Values.config "server" "cache_dir" "admin") | toJson }}
{{- end }}

{{- /* config.json: the settings, and the keys that the values have. */ -}}
{{- define "edge-proxy.config" -}}
{{- $config := include "edge-proxy.settings" . | fromJson }}
{{- if not .Values.existingSecret }}
{{- if not (or .Values.environmentKeyPairs .Values.proxyKey .Values.extraEnv .Values.envFrom .Values.config.documents) }}
{{- fail "give environmentKeyPairs, proxyKey or existingSecret: without keys there is nothing to serve" }}
{{- end }}
{{- with .Values.environmentKeyPairs }}{{ $config = set $config "environment_key_pairs" . }}{{ end }}
{{- with .Values.proxyKey }}{{ $config = set $config "proxy_key" . }}{{ end }}
{{- end }}
{{- $config | toPrettyJson }}
{{- end }}

{{- /* The settings of the values that are read at start only (docs/configuration.md, "What needs a restart"). */ -}}
{{- define "edge-proxy.restart" -}}
{{- $settings := include "edge-proxy.settings" . | fromJson }}
{{- range list
  "cores" "events.enabled" "events.fsync" "events.spool_bytes_max"
  "logging.access_log_file" "logging.enable_access_log" "logging.log_format"
  "server.connections_max" "server.driver" "server.forwarded_allow_ips" "server.head_bytes_max" "server.http2"
  "server.http2_streams_max"
  "server.proxy_headers" "server.requests_max" "server.spin_microseconds" "server.spread" "server.take_over" "server.tcp"
  "server.timeout_body" "server.timeout_head" "server.timeout_keep_alive" "server.timeout_write"
  "server.tls.cert" "server.tls.key" "server.unix_socket" "server.unix_socket_mode"
  "traits.bytes_max" "traits.forward" "traits.identities_max" "traits.path"
  "traits.redis_ca_file" "traits.redis_prefix" "traits.redis_url" "traits.require" "traits.store" "traits.ttl_seconds" }}
{{- $value := $settings }}
{{- range splitList "." . }}{{ $value = kindIs "map" $value | ternary (index ($value | default dict) .) nil }}{{ end }}
{{ . }}={{ $value | toJson }}
{{- end }}
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
