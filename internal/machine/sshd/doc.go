// Package sshd is the OpenSSH server of a machine or an image: what it settles on for each
// login, what it reads, where it listens, and how it is reloaded.
package sshd
