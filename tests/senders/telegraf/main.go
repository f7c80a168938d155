// Telegraf's own agent with its own outputs.http, and an input that reads chunks from standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"
	"strings"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/agent"
	"github.com/influxdata/telegraf/config"
	"github.com/influxdata/telegraf/plugins/inputs"
	_ "github.com/influxdata/telegraf/plugins/outputs/http"
	_ "github.com/influxdata/telegraf/plugins/serializers/json"
)

type numbers struct{ ended context.CancelFunc }

func (*numbers) SampleConfig() string              { return "" }
func (*numbers) Gather(telegraf.Accumulator) error { return nil }
func (*numbers) Stop()                             {}

func (n *numbers) Start(metrics telegraf.Accumulator) error {
	go func() {
		defer n.ended()
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
			for _, given := range chunk {
				tags := map[string]string{"number": given.Number}
				if given.Wrong {
					tags["padding"] = strings.Repeat("x", 12_000)
				}
				metrics.AddGauge("orders", map[string]any{"value": 1}, tags)
			}
		}
	}()
	return nil
}

func main() {
	ctx, ended := context.WithCancel(context.Background())
	inputs.Add("numbers", func() telegraf.Input { return &numbers{ended} })
	settings := config.NewConfig()
	if err := settings.LoadAll(os.Args[1]); err != nil {
		log.Fatal(err)
	}
	if err := agent.NewAgent(settings).Run(ctx); err != nil {
		log.Fatal(err)
	}
}
