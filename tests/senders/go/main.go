// Reads chunks from standard input, one a line, sends each, and prints the numbers of what was refused.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var chunk []struct{ Event json.RawMessage }
		if err := json.Unmarshal(lines.Bytes(), &chunk); err != nil {
			log.Fatal(err)
		}
		var events []json.RawMessage
		for _, given := range chunk {
			events = append(events, given.Event)
		}
		numbers := []string{}
		err := send(os.Args[1], events, func(event json.RawMessage, _ refusal) {
			var wrong struct{ Number string }
			json.Unmarshal(event, &wrong)
			numbers = append(numbers, wrong.Number)
		})
		if err != nil {
			log.Fatal(err)
		}
		told, _ := json.Marshal(numbers)
		fmt.Println(string(told))
	}
}
