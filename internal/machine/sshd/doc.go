// Package sshd changes the configuration of an OpenSSH server without making it
// worse: what is written is rendered by pure functions, replaced as a whole,
// judged by sshd itself, and put back if sshd does not answer as it should.
package sshd
