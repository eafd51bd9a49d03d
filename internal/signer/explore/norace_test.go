//go:build !race

package explore

const isRace = false
