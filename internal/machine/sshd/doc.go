// Package sshd is the OpenSSH server of a machine or an image: the settings that it applies to
// each login, the files that it reads, where it listens, and how to reload it.
package sshd
