//! Uplinks: ways out of the machine.
