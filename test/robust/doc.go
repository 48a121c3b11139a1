// Package robust holds tests of the built nbd-server against clients that behave
// badly: by accident, by bad luck, or on purpose. None may cost it more than bounded
// memory, and none may hurt another client.
//
// The clients speak raw bytes, written from the specification, so that they can do
// what a well-made client cannot.
package robust
