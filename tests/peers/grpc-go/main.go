// One end of gRPC calls over grpc-go; ../README.md says what it does.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	arguments := os.Args[1:]
	var err error
	switch {
	case len(arguments) >= 2 && arguments[0] == "server":
		err = serve(arguments[1], number(arguments, 2, 0))
	case len(arguments) >= 3 && arguments[0] == "client":
		err = call(arguments[1], arguments[2], number(arguments, 3, 1), number(arguments, 4, 10))
	default:
		err = fmt.Errorf("usage: peer server PORT [MAX_CONNECTION_AGE_MS] | peer client ADDRESS SCENARIO [NUMBER [SIZE]]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc-go:", err)
		os.Exit(1)
	}
}

func number(arguments []string, at, otherwise int) int {
	if len(arguments) <= at {
		return otherwise
	}
	value, err := strconv.Atoi(arguments[at])
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc-go:", err)
		os.Exit(1)
	}
	return value
}
