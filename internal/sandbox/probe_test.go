package sandbox

// What the test binary does inside a container.

func probe(args []string) int { return 0 }
