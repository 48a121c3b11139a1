// Package transmission is the phase in which data moves.
package transmission
