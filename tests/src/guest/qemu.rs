//! Which QEMU runs the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use vmm_shim::launch::QemuVersion;

use crate::process::output;

/// A QEMU for x86-64.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Name or path.
    pub program: PathBuf,
    /// What it says about itself.
    pub version: QemuVersion,
    /// Folders with its firmware, when it is not installed.
    pub data: Vec<PathBuf>,
}

impl Qemu {
    /// The one named by `QEMU`, else the installed one; at least 8.0, because 7.2 crashes under emulation with
    /// vhost-user and MSI-X.
    ///
    /// # Errors
    /// When it is missing or too old.
    pub fn find() -> Result<Self> {
        let program =
            std::env::var_os("QEMU").map_or_else(|| PathBuf::from("qemu-system-x86_64"), PathBuf::from);
        let qemu = Self::at(&program, Vec::new())?;
        ensure!(qemu.version >= QemuVersion(8, 0), "{} is {:?}, too old", program.display(), qemu.version);
        Ok(qemu)
    }

    /// QEMU 7.2 out of Debian's packages, unpacked into `cache` beside the installed one.
    ///
    /// # Errors
    /// When no 7.2 is on offer, or a library that it needs is not installed.
    pub fn old(cache: &Path) -> Result<Self> {
        let folder = cache.join("qemu-7.2");
        let program = folder.join("usr/bin/qemu-system-x86_64");
        if !program.exists() {
            fs::create_dir_all(&folder)?;
            for package in ["qemu-system-data", "qemu-system-common", "qemu-system-x86"] {
                unpack(package, &folder)?;
            }
        }
        let share = ["usr/share/qemu", "usr/share/seabios"].map(|path| folder.join(path));
        let data = [share.as_slice(), &["/usr/share/seabios".into(), "/usr/share/qemu".into()]].concat();
        Self::at(&program, data)
    }

    fn at(program: &Path, data: Vec<PathBuf>) -> Result<Self> {
        let text = output(Command::new(program).arg("--version"))?;
        let version = QemuVersion::parse(&text).with_context(|| format!("no version in {text:?}"))?;
        Ok(Self { program: program.to_owned(), version, data })
    }
}

/// Downloads the 7.2 version of `package` and unpacks it into `folder`.
fn unpack(package: &str, folder: &Path) -> Result<()> {
    let versions = output(Command::new("apt-cache").args(["madison", package]))?;
    let mut found = versions.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let version =
        found.find(|version| version.starts_with("1:7.2")).with_context(|| format!("no {package} 7.2"))?;
    let wanted = format!("{package}={version}");
    let mut apt = Command::new("apt-get");
    output(apt.current_dir(folder).args(["-q", "-o", "APT::Sandbox::User=root", "download", &wanted]))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder))?;
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
