// Package cgroup makes, limits, freezes, kills and removes control groups, v1 and v2.
package cgroup
