// Package seccomp compiles an OCI seccomp policy to classic BPF and keeps the default one.
package seccomp
