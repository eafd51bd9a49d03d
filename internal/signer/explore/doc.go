// Package explore runs pairs of operations of the signer and the fleet in every order of
// their calls. It is tests only. The section "Concurrent operations" of
// docs/architecture.md states the invariants and what the tests rely on.
package explore
