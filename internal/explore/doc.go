// Package explore runs pairs of operations of the signer and the fleet in every order of
// their calls. It is tests only; docs/architecture.md states the invariants they check.
package explore
