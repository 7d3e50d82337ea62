{{- define "semroute.selector" -}}
app.kubernetes.io/name: semroute
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "semroute.labels" -}}
{{ include "semroute.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "semroute.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary .Release.Name "default" .Values.serviceAccount.create) }}
{{- end }}

{{- /* The configuration as YAML, to be read with fromYaml. */ -}}
{{- define "semroute.config" -}}
{{ kindIs "string" .Values.config | ternary .Values.config (toYaml .Values.config) }}
{{- end }}

{{- /* The container, of a Deployment or in the gateway's pod. */ -}}
{{- define "semroute.container" -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
{{- $open := or $sidecar (not (empty .Values.networkPolicy.metrics)) -}}
name: semroute
image: "{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve, --config, /etc/semroute/live/semroute.yaml]
env:
  - name: SEMROUTE__SERVER__LISTEN
    value: {{ $sidecar | ternary "unix:/run/semroute/w{worker}.sock" (printf "0.0.0.0:%v" .Values.service.port) | quote }}
  - name: SEMROUTE__ADMIN__LISTEN
    value: "{{ $open | ternary "0.0.0.0" "127.0.0.1" }}:{{ .Values.metricsPort }}"
  {{- if .Values.adminToken.secret }}
  - name: SEMROUTE__ADMIN__TOKEN
    valueFrom: {secretKeyRef: {name: {{ .Values.adminToken.secret }}, key: {{ .Values.adminToken.key }}}}
  {{- end }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- if $sidecar }}
  - {name: semroute-admin, containerPort: {{ .Values.metricsPort }}}
  {{- else }}
  - {name: grpc, containerPort: {{ .Values.service.port }}}
  - {name: metrics, containerPort: {{ .Values.metricsPort }}}
  {{- end }}
# The encoder warms up before it is ready.
{{- if $sidecar }}
startupProbe:
  httpGet: {path: /readyz, port: {{ .Values.metricsPort }}}
  periodSeconds: 2
  failureThreshold: 60
# No readiness probe: it would take the whole gateway out of service, which fails open without the sidecar.
livenessProbe:
  httpGet: {path: /livez, port: {{ .Values.metricsPort }}}
{{- else }}
# gRPC, because the admin server may listen on loopback only.
startupProbe:
  grpc: &serving {port: {{ .Values.service.port }}, service: envoy.service.ext_proc.v3.ExternalProcessor}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc: *serving
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc: *serving
{{- end }}
  timeoutSeconds: 10
  periodSeconds: 10
  failureThreshold: 3
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  # A folder, not a file: a file mounted by subPath never changes, and a reload needs that.
  - {name: semroute-config, mountPath: /etc/semroute/live, readOnly: true}
  - {name: semroute-tmp, mountPath: /tmp}  # the admin sockets of several workers
  {{- if $sidecar }}
  - {name: semroute-socket, mountPath: /run/semroute}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "semroute.volumes" -}}
- name: semroute-config
  configMap: {name: {{ .Release.Name }}}
- name: semroute-tmp
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- if eq .Values.mode "sidecar" }}
- name: semroute-socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* A strategic merge patch of the gateway's Deployment: a native sidecar, which starts first and stops last. */ -}}
{{- define "semroute.patch" -}}
spec:
  template:
    spec:
      # The socket has mode 0660: the gateway's container needs its group.
      securityContext: {supplementalGroups: [65532]}
      initContainers:
        - restartPolicy: Always
          {{- include "semroute.container" . | nindent 10 }}
      containers:
        - name: {{ .Values.sidecar.container }}
          volumeMounts:
            - {name: semroute-socket, mountPath: /run/semroute}
      volumes:
        {{- include "semroute.volumes" . | nindent 8 }}
{{- end }}
