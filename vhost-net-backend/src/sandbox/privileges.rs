//! Rights and limits that the process gives up for good.

use rustix::io::{self, Errno};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getgroups, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
};

use super::Needs;
use crate::control::group;

/// Drops all that is not needed. The calling thread must be the only one.
pub(super) fn drop(needs: &Needs<'_>) -> io::Result<()> {
    let had = capabilities(None)?;
    if had.effective.contains(CapabilitySet::SETGID) {
        join(needs.groups)?;
    }
    if had.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set()?;
    }
    // Kernels before 4.3 have no ambient set.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let mut wanted = CapabilitySet::empty();
    wanted.set(CapabilitySet::NET_ADMIN, needs.taps);
    wanted.set(CapabilitySet::DAC_OVERRIDE, needs.connects);
    let permitted = had.permitted & wanted;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })?;
    set_no_new_privs(true)?;
    // A core would hold every guest's memory, and whoever may dump may trace.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// The owner of a file may give it to a group that he is a member of: then CAP_CHOWN is not needed.
fn join(names: &[&str]) -> io::Result<()> {
    let mut groups = getgroups()?;
    let wanted = names.iter().filter_map(|name| group::gid(name)).map(Gid::from_raw);
    for gid in wanted {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    set_thread_groups(&groups)
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know is in no set of it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
