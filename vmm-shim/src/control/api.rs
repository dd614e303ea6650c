//! What goes over `monitor.sock`: HTTP and JSON.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/vms` | [`Vms`] |
//! | `PUT /v1/vms/TENANT/VM/ORDER` | `{}`, when it is done; ORDER: `start`, `stop`, `kill`, `pause`, `resume`, `reset` |
//! | `PATCH /v1/vms/TENANT/VM?CHANGE` | `{}`, when it is done; see [`Change`] |
//! | `GET /v1/events` | [`Event`], one a line: those that are kept; with `?follow=true` also all that come |

use serde::{Deserialize, Serialize};

/// All VMs of the monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vms {
    /// By tenant and name.
    pub vms: Vec<Vm>,
}

/// One VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// `tenant/vm`.
    pub name: String,
    /// What it does: `running`, `stopped`, ...
    pub state: String,
    /// Which virtual machine monitor runs it.
    pub vmm: String,
    /// What executes its instructions: `kvm`, `tcg`; empty before its first start.
    pub accel: String,
    /// Why that.
    pub accel_why: String,
    /// Its VMM's process.
    pub pid: Option<i32>,
    /// Starts by its policy, since the monitor runs.
    pub restarts: u64,
    /// Its policy: `always`, `on-failure`, `never`.
    pub restart: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Its weight, when VMs want more CPU time than there is.
    pub share: u16,
    /// The most CPU time that it gets, percent of one CPU.
    pub quota: Option<u32>,
    /// CPU time that its VMM has taken, nanoseconds, since that was started.
    pub cpu_ns: Option<u64>,
    /// What is wrong, if something is.
    pub trouble: Option<String>,
}

/// Something that happened to a VM, or to the router.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// `tenant/vm`, or `router`.
    pub vm: String,
    /// What: `started`, `adopted`, `running`, `poweroff`, `reboot`, `panic`, `hang`, `crash`, `stopped`, ...
    pub event: String,
    /// More about it.
    pub detail: String,
    /// What is done about it.
    pub action: Option<String>,
}

/// Why something was not done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// In words.
    pub error: String,
}

/// What somebody wants of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It does something.
    Order(Order),
    /// It is made of something else.
    Change(Change),
}

/// What is to be changed of a VM's specification; what is not said stays. It holds until it is changed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Weight, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<u16>,
    /// Percent of one CPU; 0: as much as there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<u32>,
}

/// What a VM can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// It runs.
    Start,
    /// It ends: the guest is asked, and has some time for it.
    Stop,
    /// It ends now.
    Kill,
    /// Its virtual CPUs stand still.
    Pause,
    /// They go on.
    Resume,
    /// As the button of that name.
    Reset,
}

impl Order {
    /// As the request names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
        }
    }
}
