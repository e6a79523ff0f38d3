{{- define "forgeone.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* A release's name may have dots, a Service's has none. */}}
{{- define "forgeone.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "forgeone.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "forgeone.selectorLabels" -}}
app.kubernetes.io/name: {{ include "forgeone.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "forgeone.labels" -}}
{{ include "forgeone.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: forgeone
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forgeone.image" -}}
{{- $repository := required "image.repository: say where the image with the bundle is" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "forgeone.webhook" -}}
{{- if has .Values.admission.mode (list "webhook" "both") }}true{{ end }}
{{- end }}

{{- define "forgeone.policy" -}}
{{- if has .Values.admission.mode (list "policy" "both") }}true{{ end }}
{{- end }}

{{- define "forgeone.installerName" -}}
{{ include "forgeone.fullname" . }}-installer
{{- end }}

{{- define "forgeone.retireName" -}}
{{ include "forgeone.fullname" . }}-retire
{{- end }}

{{- define "forgeone.admissionName" -}}
{{ include "forgeone.fullname" . }}-admission
{{- end }}

{{/* What every container of the chart that is not privileged may do: as the Pod Security Standard "restricted" asks. */}}
{{- define "forgeone.restricted" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{- define "forgeone.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* One of forgeoned's values in TOML. JSON's texts and lists of texts are TOML's as well; numbers of values are floats. */}}
{{- define "forgeone.tomlValue" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else if or (kindIs "int64" .) (kindIs "int" .) (kindIs "bool" .) }}{{ . }}
{{- else }}{{ toJson . }}
{{- end -}}
{{- end }}

{{/* forgeoned's configuration: what values say besides, then what `config` says, which wins. */}}
{{- define "forgeone.config" -}}
{{- $made := dict }}
{{- if .Values.metrics.enabled }}
{{- $host := .Values.metrics.address }}
{{- if contains ":" $host }}{{ $host = printf "[%s]" $host }}{{ end }}
{{- $_ := set $made "metrics" (dict "address" (printf "%s:%d" $host (int .Values.metrics.port))) }}
{{- end }}
{{- if .Values.policies.sync }}
{{- $_ := set $made "cluster" (dict "kubeconfig" .Values.policies.kubeconfig "required" .Values.policies.required) }}
{{- end }}
{{- $all := mergeOverwrite $made (deepCopy .Values.config) }}
{{- range $key := keys $all | sortAlpha }}
{{- $value := get $all $key }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "forgeone.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $section := keys $all | sortAlpha }}
{{- $values := get $all $section }}
{{- if kindIs "map" $values }}

[{{ $section }}]
{{- range $key := keys $values | sortAlpha }}
{{ $key }} = {{ include "forgeone.tomlValue" (get $values $key) }}
{{- end }}
{{- end }}
{{- end }}
{{ end }}

{{/* Who runs pods that name no class: with another runtime beside, that one unless `config` says otherwise. */}}
{{- define "forgeone.defaultEngine" -}}
{{- if eq .Values.installer.mode "replace" -}}native
{{- else if eq (dig "upstream" "default_runtime" "upstream" .Values.config) "forgeone" -}}native
{{- else -}}none
{{- end }}
{{- end }}

{{/* What webhooks have in common. Never asked about the release's own namespace: it has to come up without itself. */}}
{{- define "forgeone.webhookEntry" -}}
{{- $given := .root.Values.admission.namespaceSelector }}
{{- $own := dict "key" "kubernetes.io/metadata.name" "operator" "NotIn" "values" (list .root.Release.Namespace) -}}
admissionReviewVersions: [v1]
sideEffects: None
matchPolicy: Equivalent
failurePolicy: {{ ternary "Ignore" .root.Values.admission.webhook.failurePolicy (default false .cluster) }}
timeoutSeconds: {{ .root.Values.admission.webhook.timeoutSeconds }}
clientConfig:
  service:
    name: {{ include "forgeone.admissionName" .root }}
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
    port: 443
{{- if not .cluster }}
namespaceSelector:
  {{- with $given.matchLabels }}
  matchLabels:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  matchExpressions:
    {{- append ($given.matchExpressions | default list) $own | toYaml | nindent 4 }}
{{- with .root.Values.admission.webhook.objectSelector }}
objectSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
