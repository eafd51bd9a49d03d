//go:build race

package explore

const isRace = true
