//! Names: they become parts of socket paths, domain names and counters.

use crate::at::{At, Named};
use crate::validate::context::Context;

/// What the daemon keeps in its run directory, so far as it could be a name.
const RUN_DIR_ENTRIES: [&str; 3] = ["generations", "state", "stats"];

/// Checks the name of one thing.
pub(crate) fn name(name: &At<String>, what: &str, ctx: &mut Context<'_>) {
    if !is_name(name) {
        let help = "a name is 1 to 32 characters of a-z, 0-9 and -";
        ctx.problem(name.span(), format!("{:?} is not a name for {what}", name.as_str()), help);
    }
}

/// Checks all names of a table.
pub(crate) fn names<T>(table: &Named<T>, what: &str, ctx: &mut Context<'_>) {
    for entry in table.iter() {
        name(&entry.name, what, ctx);
    }
}

/// Checks the names of tenants: each is a directory beside the run directory's own entries.
pub(crate) fn tenants<T>(table: &Named<T>, ctx: &mut Context<'_>) {
    names(table, "a tenant", ctx);
    for entry in table.iter().filter(|entry| RUN_DIR_ENTRIES.contains(&entry.name.as_str())) {
        let message =
            format!("{:?} is taken: the run directory has an entry of that name", entry.name.as_str());
        ctx.problem(entry.name.span(), message, "give the tenant another name");
    }
}

/// An interface name as the kernel takes it: 1 to 15 bytes, no slash, colon or white space.
pub(crate) fn device(device: &At<String>, ctx: &mut Context<'_>) {
    let legal = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    let text = device.as_str();
    if !(1..=15).contains(&text.len()) || !text.bytes().all(legal) || matches!(text, "." | "..") {
        let help = "1 to 15 characters, no slash, colon, percent sign or white space";
        ctx.problem(device.span(), format!("{text:?} is not an interface name"), help);
    }
}

/// A group or user name as useradd takes it.
pub(crate) fn system_group(group: &At<String>, ctx: &mut Context<'_>) {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !(1..=32).contains(&group.len()) || !group.bytes().all(legal) || group.starts_with('-') {
        ctx.problem(
            group.span(),
            format!("{:?} is not the name of a group", group.as_str()),
            "as in /etc/group: letters, digits, dots, - and _",
        );
    }
}

/// A DNS domain (RFC 1035, section 2.3.1; lower case, labels of 1 to 63).
pub(crate) fn domain(domain: &At<String>, ctx: &mut Context<'_>) {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |part: &str| {
        let edges = part.starts_with('-') || part.ends_with('-');
        (1..=63).contains(&part.len()) && part.bytes().all(legal) && !edges
    };
    if domain.len() > 253 || !domain.split('.').all(label) {
        ctx.problem(
            domain.span(),
            format!("{:?} is not a domain name", domain.as_str()),
            "labels of a-z, 0-9 and -, with dots between them",
        );
    }
}

/// Whether it may name a tenant, a VM and the like.
pub(crate) fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_names() {
        for good in ["a", "web-1", "0", "12345678901234567890123456789012"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "Web", "a.b", "a/b", "ä", "123456789012345678901234567890123", "a b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
