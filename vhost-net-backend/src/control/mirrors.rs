//! What became of the mirrors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::api::{Mirror, Mirrors};
use crate::daemon::View;
use crate::mirror::Shown;
use crate::port::lock;

/// `GET /v1/mirrors`.
pub(crate) fn mirrors(view: &View) -> Mirrors {
    Mirrors { mirrors: view.mirrors.iter().map(mirror).collect() }
}

fn mirror(shown: &Arc<Shown>) -> Mirror {
    let Shown { tenant, name, from, to, copied, trouble } = &**shown;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Mirror {
        tenant: tenant.clone(),
        name: name.clone(),
        from: from.clone(),
        to: to.clone(),
        frames: count(&copied.frames),
        bytes: count(&copied.bytes),
        missed: count(&copied.missed),
        error: lock(trouble).clone(),
    }
}
