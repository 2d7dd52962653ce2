// Numbers that people and scripts write for times, and lists.

package cli

import (
	"strconv"
	"strings"
	"time"
)

// parseUnix reads seconds[.fraction] since 1970.
func parseUnix(s string) (time.Time, bool) {
	sec, frac, dot := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	var nanos int64
	if dot {
		if frac == "" || len(frac) > 9 || strings.Trim(frac, "0123456789") != "" {
			return time.Time{}, false
		}
		nanos, _ = strconv.ParseInt(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	}
	return time.Unix(n, nanos), true
}

// splitList splits at commas; "" is no element.
func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
