//! `[router]`: defaults, and what it may say.

use std::collections::HashSet;

use crate::at::At;
use crate::mac::Mac;
use crate::model::{Poll, Router};
use crate::raw::{RawExperimental, RawPoll, RawRouter};
use crate::validate::context::Context;
use crate::validate::{names, nics};

/// The kernel's CONFIG_NR_CPUS is at most this.
const MAX_CPU: u16 = 8191;

pub(crate) fn validate(raw: &RawRouter, ctx: &mut Context<'_>) -> Router {
    if let Some(name) = &raw.name {
        names::name(name, "the router", ctx);
    }
    if let Some(group) = &raw.socket_group {
        names::system_group(group, ctx);
    }
    let text = |value: &Option<At<String>>, default: &str| {
        value.as_ref().map_or_else(|| default.to_owned(), |value| value.to_string())
    };
    Router {
        name: text(&raw.name, "vmrouter"),
        cpus: cpus(&raw.cpus, ctx),
        poll: match raw.poll {
            None | Some(RawPoll::Adaptive) => Poll::Adaptive,
            Some(RawPoll::Busy) => Poll::Busy,
            Some(RawPoll::Interrupt) => Poll::Interrupt,
        },
        run_dir: raw.run_dir.as_ref().map(|path| ctx.path(path)),
        metrics: raw
            .metrics
            .as_ref()
            .and_then(|listen| ctx.parse(listen, "an address with a port", "as \"127.0.0.1:9469\"")),
        mac: raw.mac.as_ref().and_then(|mac| nics::mac(mac, ctx)).unwrap_or(Mac::ROUTER_DEFAULT),
        socket_group: text(&raw.socket_group, "kvm"),
        uso: raw.experimental.contains(&RawExperimental::Uso),
        packed: raw.experimental.contains(&RawExperimental::Packed),
    }
}

fn cpus(raw: &[At<u64>], ctx: &mut Context<'_>) -> Vec<usize> {
    let mut seen = HashSet::new();
    for cpu in raw {
        if ctx.number::<u16>(cpu, "cpu", 0..=MAX_CPU).is_some_and(|cpu| !seen.insert(cpu)) {
            let help = "each entry is one worker, pinned to a CPU of its own";
            ctx.problem(cpu.span(), format!("CPU {} is listed twice", **cpu), help);
        }
    }
    raw.iter().filter_map(|cpu| usize::try_from(**cpu).ok()).collect()
}
