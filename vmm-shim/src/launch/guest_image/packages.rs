//! Debian packages: which ones, downloading, unpacking.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Contents, ImageError, at};

/// Depends on the newest versioned cloud kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";

/// All packages, unpacked over each other.
pub(super) struct Tree {
    /// Folder that stands for the root of a file system.
    pub(super) root: PathBuf,
    /// The kernel image in it.
    pub(super) kernel: PathBuf,
    /// `lib/modules/VERSION/kernel` in it.
    pub(super) modules: PathBuf,
}

/// Downloads and unpacks everything that `contents` needs into `cache`.
pub(super) fn unpack(
    cache: &Path,
    contents: &Contents,
    progress: &mut dyn FnMut(&str),
) -> Result<Tree, ImageError> {
    progress("looking up Debian packages");
    let kernel_package = versioned_kernel()?;
    let mut wanted = BTreeSet::from([kernel_package.clone(), BUSYBOX.to_owned()]);
    wanted.extend(with_libraries(contents)?);

    let debs = cache.join("debs");
    fs::create_dir_all(&debs).map_err(at(&debs))?;
    let files = download(&debs, &wanted, progress)?;
    let root = cache.join("tree");
    // Left from other versions, or half unpacked.
    if root.exists() {
        fs::remove_dir_all(&root).map_err(at(&root))?;
    }
    for file in &files {
        progress(&format!("unpacking {}", file_name(file)));
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.arg("-x").arg(file).arg(&root);
        run(&mut dpkg)?;
    }
    locate_kernel(root, &kernel_package)
}

/// The kernel and its modules in the unpacked tree, before or after Debian's merge of /lib into /usr/lib.
fn locate_kernel(root: PathBuf, package: &str) -> Result<Tree, ImageError> {
    let version = package.trim_start_matches("linux-image-");
    let kernel = root.join(format!("boot/vmlinuz-{version}"));
    let modules = ["lib", "usr/lib"].map(|lib| root.join(lib).join("modules").join(version).join("kernel"));
    let missing =
        |path: &str| ImageError::NotInPackage { package: package.to_owned(), path: path.to_owned() };
    if !kernel.exists() {
        return Err(missing(&format!("boot/vmlinuz-{version}")));
    }
    let modules = modules.into_iter().find(|path| path.exists()).ok_or_else(|| missing("lib/modules"))?;
    Ok(Tree { root, kernel, modules })
}

/// `linux-image-6.1.0-56-cloud-amd64` for `linux-image-cloud-amd64`.
fn versioned_kernel() -> Result<String, ImageError> {
    let found = depends([KERNEL])?.into_iter().find(|name| name.starts_with("linux-image-"));
    found.ok_or_else(|| ImageError::NoSuchPackage { package: KERNEL.to_owned() })
}

/// The programs' packages and the library packages below them.
fn with_libraries(contents: &Contents) -> Result<BTreeSet<String>, ImageError> {
    let mut found: BTreeSet<String> =
        contents.debian.iter().map(|program| program.package.to_owned()).collect();
    let mut to_visit: Vec<String> = found.iter().cloned().collect();
    while !to_visit.is_empty() {
        let below = depends(to_visit.drain(..))?;
        // Other packages (debconf, init scripts) serve the installation, not the program.
        let libraries = below.into_iter().filter(|name| name.starts_with("lib"));
        to_visit = libraries.filter(|name| found.insert(name.clone())).collect();
    }
    Ok(found)
}

/// Names that the packages depend on; of alternatives the first.
fn depends(packages: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Vec<String>, ImageError> {
    let mut apt = Command::new("apt-cache");
    apt.args(["depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
    apt.args(["--no-replaces", "--no-enhances"]).args(packages);
    let output = start(&mut apt)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // N: Unable to locate package NAME
    if let Some((_, name)) = text.lines().find_map(|line| line.split_once("Unable to locate package ")) {
        return Err(ImageError::NoSuchPackage { package: name.to_owned() });
    }
    if !output.status.success() {
        return Err(ImageError::Tool { command: shown(&apt), said: said(&output) });
    }
    Ok(parse_depends(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads the output of `apt-cache depends`: ` |Depends: a` and then `  Depends: b` mean "a or b".
fn parse_depends(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_alternatives = false;
    for line in text.lines() {
        let Some((kind, name)) = line.split_once("Depends: ") else { continue };
        let first = !in_alternatives;
        in_alternatives = kind.contains('|');
        // <name> is virtual.
        if first && !name.starts_with('<') {
            names.push(name.to_owned());
        }
    }
    names
}

/// Paths of the packages' files in `debs`; those that are not there yet are fetched.
fn download(
    debs: &Path,
    packages: &BTreeSet<String>,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, ImageError> {
    let apt = |folder: &Path, arguments: &[&str], packages: &[&str]| {
        let mut apt = Command::new("apt-get");
        // As root apt would download as a sandbox user, who cannot write into our cache.
        apt.current_dir(folder)
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .args(arguments)
            .args(packages);
        start(&mut apt)
    };
    let all: Vec<&str> = packages.iter().map(String::as_str).collect();
    let failed = |packages: &[&str], output: &Output| ImageError::Download {
        package: packages.join(", "),
        said: said(output),
    };
    // Asked in another folder: files that are there already would not be listed.
    let listing = apt(Path::new("/"), &["--print-uris"], &all)?;
    let text = String::from_utf8_lossy(&listing.stdout).into_owned();
    // 'ADDRESS' FILE SIZE HASH; FILE begins with the package's name and an underscore.
    let names = text.lines().filter(|line| line.starts_with('\'')).filter_map(|line| line.split(' ').nth(1));
    let files: Vec<PathBuf> = names.map(|name| debs.join(name)).collect();
    if files.len() < all.len() {
        return Err(failed(&all, &listing));
    }
    let is_missing = |package: &&str| {
        let start = format!("{package}_");
        files.iter().any(|file| file_name(file).starts_with(&start) && !file.exists())
    };
    let missing: Vec<&str> = all.iter().copied().filter(is_missing).collect();
    if !missing.is_empty() {
        progress(&format!("downloading {}", missing.join(", ")));
        let output = apt(debs, &[], &missing)?;
        if !output.status.success() || !files.iter().all(|file| file.exists()) {
            return Err(failed(&missing, &output));
        }
    }
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a tool to its end, whatever that is.
pub(super) fn start(command: &mut Command) -> Result<Output, ImageError> {
    command.env("LC_ALL", "C");
    command.output().map_err(|error| ImageError::Tool { command: shown(command), said: error.to_string() })
}

/// Runs a tool that must succeed, and gives its standard output.
pub(super) fn run(command: &mut Command) -> Result<Vec<u8>, ImageError> {
    let output = start(command)?;
    if !output.status.success() {
        return Err(ImageError::Tool { command: shown(command), said: said(&output) });
    }
    Ok(output.stdout)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn said(output: &Output) -> String {
    format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_and_alternatives() {
        let text = "\
libpcap0.8
  Depends: libc6
 |Depends: libdbus-1-3
 |Depends: libother
  Depends: libelogind0
  PreDepends: libpre
  Depends: <debconf-2.0>
    debconf
";
        assert_eq!(parse_depends(text), ["libc6", "libdbus-1-3", "libpre"]);
    }

    #[test]
    fn an_unknown_package_is_named() {
        let Err(error) = depends(["no-such-package-at-all"]) else { panic!("it was found") };
        let text = error.to_string();
        // On a machine without apt the tool is named instead.
        assert!(text.contains("no-such-package-at-all") || text.contains("apt-cache"), "{text}");
    }
}
