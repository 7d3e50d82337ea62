"""Telemetry: log, metrics, spans and the admin port."""
