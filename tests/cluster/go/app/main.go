// What runs in the cluster's pods besides the sidecars. One static binary, so that its image holds one file.
//
//	app serve                     HTTP/1.1 and HTTP/2 on 8080, 8082, 8090 and 9080, TCP echo on 9000
//	app get NUMBER VERSION URL    that many requests one after another, over http1 or http2; prints statuses and counts
//	app echo NUMBER ADDRESS SIZE  that many connections, each with SIZE bytes there and back; prints what arrived
//	app wait                      until it is told to end (also the pods' pause process)
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const patience = 20 * time.Second

func main() {
	arguments := append(os.Args[1:], "", "", "", "")
	var err error
	switch arguments[0] {
	case "serve":
		err = serve()
	case "get":
		err = get(arguments[1], arguments[2], arguments[3])
	case "echo":
		err = echo(arguments[1], arguments[2], arguments[3])
	case "wait":
		wait()
	default:
		err = fmt.Errorf("usage: app serve|get|echo|wait, not %q", arguments[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func wait() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}

func serve() error {
	listener, err := net.Listen("tcp", ":9000")
	if err != nil {
		return err
	}
	go accept(listener)
	failed := make(chan error)
	for _, address := range []string{":8080", ":8082", ":8090", ":9080"} {
		server := &http.Server{Addr: address, Handler: http.HandlerFunc(answer), Protocols: both()}
		go func() { failed <- server.ListenAndServe() }()
	}
	return <-failed
}

func both() *http.Protocols {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &protocols
}

// answer replies with the status in the path `/status/N`, else 200, and says which pod it is.
func answer(writer http.ResponseWriter, request *http.Request) {
	io.Copy(io.Discard, request.Body)
	if text, found := strings.CutPrefix(request.URL.Path, "/status/"); found {
		if status, err := strconv.Atoi(text); err == nil && status >= 200 && status < 600 {
			writer.WriteHeader(status)
		}
	}
	name, _ := os.Hostname()
	fmt.Fprintln(writer, name)
}

func accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

func get(number, version, url string) error {
	count, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	var protocols http.Protocols
	switch version {
	case "http1":
		protocols.SetHTTP1(true)
	case "http2":
		protocols.SetUnencryptedHTTP2(true)
	default:
		return fmt.Errorf("version http1 or http2, not %q", version)
	}
	client := http.Client{Transport: &http.Transport{Protocols: &protocols}, Timeout: patience}
	statuses := map[string]int{}
	for range count {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		if _, err = io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
		response.Body.Close()
		statuses[strconv.Itoa(response.StatusCode)]++
	}
	return json.NewEncoder(os.Stdout).Encode(statuses)
}

func echo(number, address, size string) error {
	count, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	length, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	sent, total := bytes.Repeat([]byte{1}, length), 0
	for range count {
		connection, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		connection.SetDeadline(time.Now().Add(patience))
		if _, err = connection.Write(sent); err != nil {
			return err
		}
		received := make([]byte, length)
		if _, err = io.ReadFull(connection, received); err != nil {
			return err
		}
		connection.Close()
		total += length
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]int{"connections": count, "bytes": total})
}
