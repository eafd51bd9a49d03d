package node

import (
	"strings"
	"testing"
)

func cluster() Cluster {
	return Cluster{Name: "teleport.example.com", Proxy: "proxy.example.com", Signer: "hallmark.example.com"}
}

func TestCheckHostname(t *testing.T) {
	tests := map[string]bool{
		"web":                                  true,
		"web-" + ownID:                         true,
		ownID:                                  true,
		"10-0-0-1":                             true,
		"beef":                                 true,
		strings.Repeat("a", 63):                true,
		"":                                     false,
		strings.Repeat("a", 64):                false,
		"-web":                                 false,
		"web-":                                 false,
		"Web":                                  false,
		"web_1":                                false,
		"web.example":                          false,
		"10.0.0.1":                             false,
		"127.1":                                false,
		"::1":                                  false,
		"2130706433":                           false,
		"0x7f000001":                           false,
		"0x":                                   false,
		"017700000001":                         false,
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8": false,
		"6ba7b8109dad11d180b400c04fd430c8":     false,
		account + "-" + ownID:                  false,
		account + "-i-x":                       false,
		"localhost":                            false,
		"teleport":                             false,
		"proxy":                                false,
		otherID:                                false,
		"bastion-" + otherID:                   false,
		"bastion" + otherID:                    false,
		"web-i-12345678":                       false,
		"*":                                    false,
	}
	for name, want := range tests {
		if err := CheckHostname(name, facts(), cluster()); (err == nil) != want {
			t.Errorf("%q: error %v, want allowed %v", name, err, want)
		}
	}
	c := Cluster{Name: "main", Proxy: "Main-Proxy."}
	for _, name := range []string{"main", "main-proxy"} {
		if CheckHostname(name, facts(), c) == nil {
			t.Errorf("%q, a name of the cluster without dots, was accepted", name)
		}
	}
}
