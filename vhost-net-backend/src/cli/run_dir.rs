//! Where the sockets are, for `vmrouter` and `packet-stats`.

use std::path::{Path, PathBuf};

use super::Failure;

/// RUN_DIR, by the rule of [`vmm_shim::wire::run_dir`].
///
/// # Errors
/// When an ordinary user has no `$XDG_RUNTIME_DIR`.
pub fn run_dir(flag: Option<&Path>, file: Option<&Path>) -> Result<PathBuf, Failure> {
    vmm_shim::wire::run_dir(flag, file).map_err(|error| Failure::usage(error.to_string()))
}

/// RUN_DIR of the daemon that is asked about `tenant`: as [`run_dir`], but an ordinary user who runs none of its own asks
/// that of the host, as the owner of the tenant.
///
/// # Errors
/// As [`run_dir`], if no tenant is named.
pub fn of_daemon(flag: Option<&Path>, tenant: Option<&str>) -> Result<PathBuf, Failure> {
    let of_host = Path::new("/run/vmrouter");
    match (run_dir(flag, None), tenant) {
        (Ok(found), Some(_)) if flag.is_none() && !found.exists() => Ok(of_host.to_owned()),
        (Err(_), Some(_)) => Ok(of_host.to_owned()),
        (found, _) => found,
    }
}
