//! Rules about the sources themselves: who may depend on whom, where `unsafe` may stand, what no file may name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::process::output;

/// Each member and the members that it may use.
const ALLOWED: [(&str, &[&str]); 5] = [
    ("topology", &[]),
    ("router", &["topology"]),
    ("vmm-shim", &["topology"]),
    ("vhost-net-backend", &["topology", "router", "vmm-shim"]),
    ("tests", &["topology", "router", "vmm-shim", "vhost-net-backend"]),
];

/// Where `unsafe` may stand: files, or folders with a slash at the end.
const UNSAFE: [&str; 5] = [
    "vhost-net-backend/src/guest_memory/",
    "vhost-net-backend/src/sys.rs",
    "vmm-shim/src/sys.rs",
    "vmm-shim/preload/",
    "vmm-shim/guest/src/bar.rs",
];

/// Of `vmm-shim`, the daemon may use these modules only.
const DAEMON_MAY_USE: [&str; 2] = ["launch", "wire"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Files of the repository, or of the folder when there is no repository; paths from the root.
fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let text = output(&mut git)?;
    Ok(text.lines().filter(|path| root().join(path).is_file()).map(str::to_owned).collect())
}

/// Paths and texts of all Rust files.
fn sources() -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for path in files()?.into_iter().filter(|path| path.ends_with(".rs")) {
        let text = fs::read_to_string(root().join(&path)).context(path.clone())?;
        sources.push((path, text));
    }
    Ok(sources)
}

#[test]
fn dependencies_go_one_way() -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&output(&mut cargo)?)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    for package in packages {
        let member = name(package);
        let allowed = ALLOWED.iter().find(|(name, _)| *name == member).map(|(_, allowed)| *allowed);
        let allowed = allowed.with_context(|| format!("{member} has no line in ALLOWED"))?;
        let used = package["dependencies"].as_array().context("dependencies")?.iter().map(name);
        for dependency in used.filter(|dependency| members.contains(dependency)) {
            assert!(allowed.contains(&dependency.as_str()), "{member} must not use {dependency}");
        }
    }
    Ok(())
}

#[test]
fn the_daemon_uses_two_modules_of_the_monitor() -> Result<()> {
    for (path, text) in sources()?.iter().filter(|(path, _)| path.starts_with("vhost-net-backend/")) {
        for after in text.split("vmm_shim::").skip(1) {
            let known = DAEMON_MAY_USE.iter().any(|module| after.starts_with(module));
            assert!(known, "{path} uses vmm_shim::{}", after.lines().next().unwrap_or_default());
        }
    }
    Ok(())
}

#[test]
fn unsafe_stands_only_where_it_may() -> Result<()> {
    let allowed = |path: &str| {
        UNSAFE.iter().any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
    };
    for (path, text) in sources()? {
        for (number, line) in text.lines().enumerate() {
            assert!(!has_unsafe(line) || allowed(&path), "{path}:{}: {line}", number + 1);
        }
    }
    Ok(())
}

/// Whether the line has the keyword, outside comments and strings.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Every other part is inside quotes; a string over several lines is prose, with no brace after the word.
    let code = code.replace("\\\"", "");
    let outside: String = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words: Vec<&str> =
        outside.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).collect();
    let followed = ["{", "fn", "impl", "trait", "extern", "(", "static"];
    words.contains(&"unsafe")
        && followed.iter().any(|next| {
            outside.contains(&format!("unsafe {next}")) || outside.contains(&format!("unsafe{next}"))
        })
}

#[test]
fn the_keyword_is_recognized() {
    for (line, wanted) in [
        ("    let size = unsafe { getpagesize() };", true),
        ("unsafe impl Send for X {}", true),
        ("pub unsafe fn f() {}", true),
        ("#[unsafe(no_mangle)]", true),
        ("#![forbid(unsafe_code)]", false),
        ("// unsafe { }", false),
        ("let text = \"unsafe { }\";", false),
        ("#![expect(unsafe_code, reason = \"system calls\")]", false),
    ] {
        assert_eq!(has_unsafe(line), wanted, "{line}");
    }
}

/// Hosts of package registries and folders of one developer's machine: the project works anywhere.
#[test]
fn no_file_names_a_registry_host_or_a_machine_path() -> Result<()> {
    // In two halves, so that this file does not hold them.
    let hosts = [("deb.debian", ".org"), ("crates", ".io"), ("pypi", ".org"), ("registry.npmjs", ".org")];
    let paths = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/")];
    let forbidden: Vec<String> =
        hosts.iter().chain(&paths).map(|(start, end)| format!("{start}{end}")).collect();
    for path in files()? {
        // Cargo's own file names the registry that each version came from.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        if path.ends_with("Cargo.lock") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let found = forbidden.iter().find(|word| line.contains(word.as_str()));
            assert!(found.is_none(), "{path}:{}: {line}", number + 1);
        }
    }
    Ok(())
}
