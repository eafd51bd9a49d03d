// Package agent is the flow on the instance: it asks the signer for host
// certificates and puts them into use without ever making sshd worse than it was.
package agent
