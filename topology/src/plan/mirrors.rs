//! Differences of mirrors. All are made in place: nothing that a guest sends waits for them.

use super::compare::{Fields, list, pair};
use super::{Effect, Plan};
use crate::model::{Mirror, Tenant};

impl Plan {
    /// Mirrors of one tenant.
    pub(super) fn mirrors(&mut self, tenant: &str, old: Option<&Tenant>, new: Option<&Tenant>) {
        let (mine, others) = (mirrors(old), mirrors(new));
        for (was, is) in pair(mine, others, |mirror| mirror.name.clone()) {
            let what = || format!("mirror {tenant}/{}", was.or(is).map_or("", |mirror| &mirror.name));
            let (false, Some(was), Some(is)) = (self.whole(was, is, what), was, is) else { continue };
            let (Some(old), Some(new)) = (old, new) else { continue };
            let mut fields = Fields::default();
            fields.compare(Effect::InPlace, "from", &list(was.sources(old)), &list(is.sources(new)));
            fields.compare(Effect::InPlace, "to", &was.target(old), &is.target(new));
            fields.compare(Effect::InPlace, "snaplen", &was.snaplen, &is.snaplen);
            self.both(what(), fields);
        }
    }
}

fn mirrors(tenant: Option<&Tenant>) -> &[Mirror] {
    tenant.map(|tenant| tenant.mirrors.as_slice()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
version = 1
[tenant.a.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.a.vm.x]
nic = [{ network = "lan" }]
[tenant.a.vm.ids]
nic = [{ network = "lan" }, { network = "lan" }]
[tenant.a.mirror.m]
from = ["vm:x"]
file = "/var/log/m.pcapng"
"#;

    #[test]
    fn a_mirror_comes_goes_and_changes_by_name() {
        let parse = |text: &str| crate::parse("t.toml", text).unwrap();
        let (with, without) = (parse(FILE), parse(FILE.split("[tenant.a.mirror").next().unwrap()));
        let other = FILE.replace("file = \"/var/log/m.pcapng\"", "to = \"vm:ids.1\"\nsnaplen = 128");
        let other = parse(&other.replace("[\"vm:x\"]", "[\"vm:x\", \"network:lan\"]"));
        for (old, new, wanted) in [
            (&with, &with, ""),
            (&without, &with, "+ mirror a/m"),
            (&with, &without, "- mirror a/m"),
            (
                &with,
                &other,
                "~ mirror a/m from vm:x -> vm:x network:lan, to /var/log/m.pcapng -> vm:ids.1, snaplen 262144 -> 128",
            ),
        ] {
            let plan = Plan::between(old, new);
            assert!(plan.changes.iter().all(|change| change.effect == Effect::InPlace));
            let lines: Vec<_> = plan.changes.iter().map(ToString::to_string).collect();
            assert_eq!(lines.join("\n"), wanted);
        }
    }
}
