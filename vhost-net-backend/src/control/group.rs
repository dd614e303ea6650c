//! The operators' group, which may read what the daemon shows.

use std::io;
use std::path::Path;

/// Members may ask the control socket and read the stats file.
pub const OPERATORS: &str = "vmrouter";

/// The id of a group of `/etc/group`.
#[must_use]
pub fn gid(name: &str) -> Option<u32> {
    find(&std::fs::read_to_string("/etc/group").ok()?, name)
}

fn find(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Hands a file to the group [`OPERATORS`], if there is one and we are a member of it or root.
pub(crate) fn give_to_operators(path: &Path) -> io::Result<()> {
    let Some(gid) = gid(OPERATORS) else { return Ok(()) };
    match std::os::unix::fs::chown(path, None, Some(gid)) {
        // A daemon of an ordinary user outside the group keeps its files for that user.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_group() {
        let table = "root:x:0:\nvmrouter:x:998:ann,bob\nbroken\nhalf:x\nword:x:many:\n";
        for (name, wanted) in [
            ("root", Some(0)),
            ("vmrouter", Some(998)),
            ("ann", None),
            ("half", None),
            ("word", None),
            ("broken", None),
        ] {
            assert_eq!(find(table, name), wanted, "{name}");
        }
    }
}
