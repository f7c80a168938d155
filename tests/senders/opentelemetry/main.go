// The Collector's own exporter, and log records made of the chunks that stand on standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/exporter/exportertest"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"gopkg.in/yaml.v3"
)

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var settings struct {
		Exporters map[string]map[string]any
	}
	if err := yaml.Unmarshal(text, &settings); err != nil {
		log.Fatal(err)
	}
	factory := otlphttpexporter.NewFactory()
	config := factory.CreateDefaultConfig()
	if err := confmap.NewFromStringMap(settings.Exporters["otlphttp"]).Unmarshal(config); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	exporter, err := factory.CreateLogs(ctx, exportertest.NewNopSettings(factory.Type()), config)
	if err != nil {
		log.Fatal(err)
	}
	if err := exporter.Start(ctx, componenttest.NewNopHost()); err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var chunk []struct {
			Number string
			Wrong  bool
		}
		if err := json.Unmarshal(lines.Bytes(), &chunk); err != nil {
			log.Fatal(err)
		}
		logs := plog.NewLogs()
		resource := logs.ResourceLogs().AppendEmpty()
		resource.Resource().Attributes().PutStr("service.name", "shop")
		records := resource.ScopeLogs().AppendEmpty().LogRecords()
		for _, given := range chunk {
			record := records.AppendEmpty()
			record.SetTimestamp(pcommon.NewTimestampFromTime(time.Now()))
			record.SetEventName("order.placed")
			record.Body().SetStr(given.Number)
			if given.Wrong {
				record.Attributes().PutStr("padding", strings.Repeat("x", 12_000))
			}
		}
		if err := exporter.ConsumeLogs(ctx, logs); err != nil {
			log.Print(err)
		}
	}
	if err := exporter.Shutdown(ctx); err != nil {
		log.Print(err)
	}
}
