// Package winsvc makes a program a service of Windows: it installs, starts, stops
// and removes one, and is the program's side of the talk with the service control
// manager.
//
// # Services
//
// A service is a program that the service control manager starts, at boot or when
// asked, without a console and in a folder of the system. The program tells the
// manager how far it is (starting, running, stopping) and gets controls from it.
// The package turns these into the signals that the program knows from other
// systems: stop and shutdown become SIGTERM, a change of parameters SIGHUP. A
// manager that hears nothing for a while gives a program up, so one that takes
// its time to start or to stop says now and then that it is still at it.
//
// A service has no standard error. What it has to say goes to the event log, where
// each program has a name, its source, that is registered when it is installed.
//
// There is nothing in the package on other systems.
package winsvc
