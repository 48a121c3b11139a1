// Package server accepts connections and serves exports to them.
package server
