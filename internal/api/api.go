// Package api answers the Docker Engine API. One route table, one file a resource; it
// decides nothing, the engine does.
package api
