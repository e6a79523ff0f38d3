// A guest in Go: says what it was given, and does what its first argument asks.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func main() {
	words := append(os.Args[1:], "hello")
	switch words[0] {
	case "hello":
		who, given := os.LookupEnv("WHO")
		if !given {
			who = "nobody"
		}
		fmt.Println("hello from go", who)
	case "exit":
		code, _ := strconv.Atoi(words[1])
		os.Exit(code)
	case "copy":
		text, _ := io.ReadAll(os.Stdin)
		fmt.Print(strings.ToUpper(string(text)))
	case "write":
		if err := os.WriteFile(words[1], []byte(words[2]), 0o644); err != nil {
			panic(err)
		}
	case "sum":
		// Goroutines of one thread that hand over, and a heap that is collected.
		parts := make(chan uint64)
		for part := uint64(0); part < 4; part++ {
			go func(from uint64) {
				all := make([]uint64, 1_000_000)
				var sum uint64
				for i := range all {
					all[i] = from + uint64(i)
					sum += all[i]
				}
				parts <- sum
			}(part * 1_000_000)
		}
		var sum uint64
		for range 4 {
			sum += <-parts
		}
		fmt.Println(sum)
	default:
		panic("what is " + words[0] + "?")
	}
}
