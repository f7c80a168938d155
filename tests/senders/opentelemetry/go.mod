module sender

go 1.25.0

require go.opentelemetry.io/collector/exporter/otlphttpexporter v0.165.0
