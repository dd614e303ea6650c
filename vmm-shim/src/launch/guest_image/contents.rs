//! What goes into the guest's first file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::cpio::Archive;
use super::packages::{Tree, run, start};
use super::{Contents, ImageError, at};

/// Kernel modules in the order of loading; in another order there is no eth0. The last ones tell the VMM of a panic, and
/// hear the power button.
const MODULES: [&str; 13] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "pvpanic",
    "pvpanic-pci",
    "button",
    "evdev",
];

/// Empty folders that `init.sh` mounts on or writes to.
const FOLDERS: [&str; 6] = ["proc", "sys", "dev", "run", "tmp", "root"];

/// Where Debian keeps shared libraries, before and after its merge of /lib into /usr/lib.
const LIBRARY_FOLDERS: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The archive as bytes.
pub(super) fn archive(tree: &Tree, contents: &Contents) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::default();
    let busybox = first_of(&tree.root, &["bin/busybox", "usr/bin/busybox"]).ok_or_else(|| {
        ImageError::NotInPackage { package: "busybox-static".to_owned(), path: "bin/busybox".to_owned() }
    })?;
    add(&mut archive, "bin/busybox", 0o755, &read(&busybox)?)?;
    add(&mut archive, "init", 0o755, include_bytes!("init.sh"))?;
    // Programs that give up rights look up users.
    add(&mut archive, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    add(&mut archive, "etc/group", 0o644, b"root:x:0:\n")?;
    for folder in FOLDERS {
        archive.directory(folder).map_err(at(Path::new(folder)))?;
    }
    for name in MODULES {
        add(&mut archive, &format!("lib/modules/{name}.ko"), 0o644, &module(&tree.modules, name)?)?;
    }
    add(&mut archive, "lib/modules/order", 0o644, (MODULES.join("\n") + "\n").as_bytes())?;
    for program in &contents.debian {
        let path = tree.root.join(program.path);
        if !path.exists() {
            let (package, path) = (program.package.to_owned(), program.path.to_owned());
            return Err(ImageError::NotInPackage { package, path });
        }
        add(&mut archive, program.path, 0o755, &read(&path)?)?;
        add_libraries(&mut archive, &path, Some(&tree.root))?;
    }
    for path in &contents.local {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        add(&mut archive, &format!("usr/bin/{name}"), 0o755, &read(path)?)?;
        add_libraries(&mut archive, path, None)?;
    }
    archive.finish().map_err(at(Path::new("initrd")))
}

/// One kernel module, unpacked if the package has it compressed.
fn module(modules: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let folders = [
        "drivers/virtio",
        "drivers/net",
        "net/core",
        "drivers/char",
        "drivers/misc/pvpanic",
        "drivers/acpi",
        "drivers/input",
    ];
    for (suffix, tool) in [("", "cat"), (".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")] {
        for folder in folders {
            let path = modules.join(folder).join(format!("{name}.ko{suffix}"));
            match (path.exists(), tool) {
                (false, _) => {}
                (true, "cat") => return read(&path),
                (true, _) => return run(Command::new(tool).arg("-dc").arg(&path)),
            }
        }
    }
    Err(ImageError::NotInPackage { package: modules.display().to_string(), path: format!("{name}.ko") })
}

/// Adds the shared libraries of `program` and its loader: from `root` if given, else this machine's.
fn add_libraries(archive: &mut Archive, program: &Path, root: Option<&Path>) -> Result<(), ImageError> {
    for library in libraries(program, root)? {
        let inside = root.and_then(|root| library.strip_prefix(root).ok()).unwrap_or(&library);
        let inside = inside.to_string_lossy();
        let inside = inside.trim_start_matches('/');
        add(archive, inside, 0o755, &read(&library)?)?;
        // The path that programs name is in /lib64, a link wherever the loader really is.
        if inside.ends_with(LOADER) && !inside.starts_with("lib64/") {
            let link = format!("lib64/{LOADER}");
            archive.symlink(&link, &format!("/{inside}")).map_err(at(Path::new(&link)))?;
        }
    }
    Ok(())
}

/// Paths of everything that the dynamic loader would map for `program`.
fn libraries(program: &Path, root: Option<&Path>) -> Result<Vec<PathBuf>, ImageError> {
    let Some(root) = root else {
        let output = start(Command::new("ldd").arg(program))?;
        // A static program has no libraries, and ldd fails.
        let text = if output.status.success() { output.stdout } else { Vec::new() };
        return parse_list(program, &String::from_utf8_lossy(&text));
    };
    let folders = LIBRARY_FOLDERS.map(|folder| root.join(folder));
    let Some(loader) = folders.iter().map(|folder| folder.join(LOADER)).find(|path| path.exists()) else {
        return Err(ImageError::NoLibrary { program: program.to_owned(), library: LOADER.to_owned() });
    };
    let search = folders.map(|folder| folder.to_string_lossy().into_owned()).join(":");
    // The packages' own loader, so that their C library and it are of one version.
    let text = run(Command::new(&loader).args(["--library-path", &search, "--list"]).arg(program))?;
    let mut found = parse_list(program, &String::from_utf8_lossy(&text))?;
    found.retain(|path| !path.ends_with(LOADER));
    found.push(loader);
    Ok(found)
}

/// Reads `name => /path (address)`, `/path (address)` and `name => not found`.
fn parse_list(program: &Path, text: &str) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        if path == "not found" {
            return Err(ImageError::NoLibrary { program: program.to_owned(), library: name.to_owned() });
        }
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

fn first_of(root: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| root.join(name)).find(|path| path.exists())
}

fn add(archive: &mut Archive, path: &str, mode: u32, data: &[u8]) -> Result<(), ImageError> {
    archive.file(path, mode, data).map_err(at(Path::new(path)))
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list() {
        let text = "\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f)
\tstatically linked
";
        let found = parse_list(Path::new("p"), text).unwrap();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        let error = parse_list(Path::new("p"), "\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert_eq!(error, "p needs the library libx.so.1, which was not found");
    }

    #[test]
    fn modules_are_found_compressed_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("drivers/net");
        fs::create_dir_all(&drivers).unwrap();
        fs::write(drivers.join("virtio_net.ko"), "plain").unwrap();
        assert_eq!(module(folder.path(), "virtio_net").unwrap(), b"plain");
        fs::write(drivers.join("net_failover.ko"), "packed").unwrap();
        run(Command::new("gzip").arg(drivers.join("net_failover.ko"))).unwrap();
        assert_eq!(module(folder.path(), "net_failover").unwrap(), b"packed");
        assert!(module(folder.path(), "failover").is_err());
    }
}
