//! The Debian package: built, installed, used, upgraded and removed, on a copy of this system.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::daemon::binary;
use tests::process::output;
use tests::{skip, step};

/// Paths from the top of the workspace.
const BUILD: &str = "vhost-net-backend/debian/build";
const USE: &str = "tests/tests/package.sh";

fn overlay() -> skip::Need {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.contains("\toverlay").then_some(()).ok_or_else(|| "needs overlayfs in the kernel".to_owned())
}

#[test]
fn the_package_installs_serves_and_goes() -> Result<()> {
    let programs =
        ["dpkg-deb", "unshare", "setpriv", "systemd-sysusers", "systemd-analyze"].map(skip::program);
    let needs = [[skip::root(), overlay()].as_slice(), &programs].concat();
    if skip::unless("the_package_installs_serves_and_goes", &needs) {
        return Ok(());
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let programs = binary("vmrouter")?;
    let programs = programs.parent().context("no folder")?;
    let folder = tempfile::tempdir()?;
    step("build");
    let build =
        output(Command::new(top.join(BUILD)).arg("-o").arg(folder.path()).arg("--bin-dir").arg(programs))?;
    let package = build.lines().last().context("no package")?;
    let root = folder.path().join("root");
    std::fs::create_dir(&root)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash"]).arg(top.join(USE)).arg(package).arg(&root);
    let said = output(&mut command)?;
    print!("{said}");
    ensure!(said.ends_with("the package does what it should\n"), "{said}");
    Ok(())
}
