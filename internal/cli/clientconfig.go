// config.json of Docker's client: default formats, detach keys, proxies.

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
)

// clientConfig is what the command line reads of config.json; credentials are the
// registry client's.
type clientConfig struct {
	PsFormat       string `json:"psFormat"`
	ImagesFormat   string `json:"imagesFormat"`
	NetworksFormat string `json:"networksFormat"`
	VolumesFormat  string `json:"volumesFormat"`
	StatsFormat    string `json:"statsFormat"`
	DetachKeys     string `json:"detachKeys"`
	Proxies        map[string]struct {
		HTTPProxy  string `json:"httpProxy"`
		HTTPSProxy string `json:"httpsProxy"`
		NoProxy    string `json:"noProxy"`
		FTPProxy   string `json:"ftpProxy"`
		AllProxy   string `json:"allProxy"`
	} `json:"proxies"`
}

// clientConfig reads the file once; one that is missing or broken counts as empty,
// since nothing in it is needed.
func (a *app) clientConfig() clientConfig {
	if a.config == nil {
		a.config = sync.OnceValue(a.readClientConfig)
	}
	return a.config()
}

func (a *app) readClientConfig() (c clientConfig) {
	dir := firstOf(a.global.config, a.env["DOCKER_CONFIG"])
	if dir == "" && a.env["HOME"] != "" {
		dir = filepath.Join(a.env["HOME"], ".docker")
	}
	if dir == "" {
		return c
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil && json.Unmarshal(b, &c) != nil {
		c = clientConfig{}
	}
	return c
}

// proxyEnv are the variables that containers and builds get from "proxies".
func (a *app) proxyEnv() map[string]string {
	p, ok := a.clientConfig().Proxies["default"]
	if !ok {
		return nil
	}
	env := map[string]string{}
	for _, v := range [][3]string{
		{"HTTP_PROXY", "http_proxy", p.HTTPProxy}, {"HTTPS_PROXY", "https_proxy", p.HTTPSProxy},
		{"NO_PROXY", "no_proxy", p.NoProxy}, {"FTP_PROXY", "ftp_proxy", p.FTPProxy}, {"ALL_PROXY", "all_proxy", p.AllProxy},
	} {
		if v[2] != "" {
			env[v[0]], env[v[1]] = v[2], v[2]
		}
	}
	return env
}
