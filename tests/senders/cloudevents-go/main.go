package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

func main() {
	client, err := cloudevents.NewClientHTTP(cloudevents.WithTarget(os.Args[1]))
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var chunk []struct {
			Number, ID string
			Wrong      bool
		}
		if err := json.Unmarshal(lines.Bytes(), &chunk); err != nil {
			log.Fatal(err)
		}
		for _, given := range chunk {
			event := cloudevents.NewEvent()
			event.SetID(given.ID)
			event.SetSource("/shop")
			event.SetType("order.placed")
			if given.Wrong {
				event.SetType(strings.Repeat("x", 200))
			}
			if err := event.SetData(cloudevents.ApplicationJSON, map[string]string{"number": given.Number}); err != nil {
				log.Fatal(err)
			}
			if err := send(context.Background(), client, event); err != nil {
				fmt.Fprintln(os.Stderr, err)
				fmt.Printf("[%q]\n", given.Number)
			}
		}
	}
}
