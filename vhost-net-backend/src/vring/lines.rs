//! The eventfds of one vring.

use std::os::fd::{AsFd, OwnedFd};

use super::RingSetup;
use crate::sys;

/// How guest, daemon and front end wake each other.
#[derive(Debug)]
pub(super) struct Lines {
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
}

impl Lines {
    /// Takes them out of the set-up.
    pub(super) fn take(setup: &mut RingSetup) -> Self {
        Self { kick: setup.kick.take(), call: setup.call.take(), err: setup.err.take() }
    }

    /// The guest's kick, to wait on (edge-triggered). Never to be read: the VMM can make it block, as O_NONBLOCK belongs
    /// to the file description that we share, and a semaphore would stay readable for ever.
    pub(super) fn kick(&self) -> Option<&OwnedFd> {
        self.kick.as_ref()
    }

    /// Signals the guest, if it can be signalled.
    pub(super) fn ring_call(&self) {
        if let Some(call) = &self.call {
            sys::signal(call.as_fd());
        }
    }

    /// Replaces the call eventfd.
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        // A signal may have been due while there was nobody to signal.
        self.ring_call();
    }

    /// Tells the front end that the vring stopped by itself (vhost-user, "VHOST_USER_SET_VRING_ERR").
    pub(super) fn signal_error(&self) {
        if let Some(err) = &self.err {
            sys::signal(err.as_fd());
        }
    }
}
