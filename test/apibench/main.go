// Command apibench times the Engine API: create, start, wait and delete of a container, against Docker's engine and keg's
// in turns, then a list of 1,000 containers of each.
//
//	apibench -n 30 docker=unix:///run/docker.sock keg=unix:///run/keg/keg.sock
//
// Both engines need an image "box" with a program true.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// engine is one that is measured.
type engine struct {
	name   string
	client *http.Client
	times  []time.Duration
	made   []string // containers of the list
}

func main() {
	rounds := flag.Int("n", 30, "rounds")
	many := flag.Int("list", 1000, "containers of the list; 0 leaves it out")
	flag.Parse()
	log.SetFlags(0)
	var engines []*engine
	for _, arg := range flag.Args() {
		name, addr, _ := strings.Cut(arg, "=unix://")
		dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", addr) }
		engines = append(engines, &engine{name: name, client: &http.Client{Transport: &http.Transport{DialContext: dial}}})
	}
	for i := range *rounds {
		for _, e := range engines {
			begun := time.Now()
			e.once()
			if i > 0 { // the first warms up
				e.times = append(e.times, time.Since(begun))
			}
		}
	}
	for _, e := range engines {
		slices.Sort(e.times)
		fmt.Printf("%-8s create+start+wait+delete: median %v, slowest %v\n", e.name, e.times[len(e.times)/2].Round(10*time.Microsecond), e.times[len(e.times)-1].Round(10*time.Microsecond))
	}
	if *many == 0 {
		return
	}
	for _, e := range engines {
		e.times = nil
		for range *many {
			e.made = append(e.made, e.create())
		}
	}
	for range 12 {
		for _, e := range engines {
			begun := time.Now()
			b := e.do("GET", "/containers/json?all=1", nil)
			e.times = append(e.times, time.Since(begun))
			if n := bytes.Count(b, []byte(`"Id":`)); n < *many {
				log.Fatalf("the list of %s has %d containers", e.name, n)
			}
		}
	}
	for _, e := range engines {
		e.times = e.times[1:] // the first warms up
		slices.Sort(e.times)
		fmt.Printf("%-8s list of %d containers: median %v, slowest %v\n", e.name, *many, e.times[len(e.times)/2].Round(10*time.Microsecond), e.times[len(e.times)-1].Round(10*time.Microsecond))
		for _, id := range e.made {
			e.do("DELETE", "/containers/"+id, nil)
		}
	}
}

func (e *engine) once() {
	id := e.create()
	e.do("POST", "/containers/"+id+"/start", nil)
	e.do("POST", "/containers/"+id+"/wait", nil)
	e.do("DELETE", "/containers/"+id, nil)
}

func (e *engine) create() string {
	b := e.do("POST", "/containers/create", []byte(`{"Image":"box","Cmd":["true"]}`))
	var c struct{ ID string }
	if err := json.Unmarshal(b, &c); err != nil {
		log.Fatal(err)
	}
	return c.ID
}

func (e *engine) do(method, path string, body []byte) []byte {
	q, err := http.NewRequest(method, "http://docker/v1.41"+path, bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	r, err := e.client.Do(q)
	if err != nil {
		log.Fatal(e.name, ": ", err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode >= 300 {
		log.Fatalf("%s: %s %s: %s %s %v", e.name, method, path, r.Status, b, err)
	}
	return b
}
