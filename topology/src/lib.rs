//! What did the operator ask for?
//!
//! # Theory of operation
//!
//! One TOML file says everything, or one and some beside it. It is read in steps, and each step has one place:
//!
//! 1. [`read`] takes the file, and one for each tenant that has its own (`drop_ins`): regular, at most 1 MiB, UTF-8.
//! 2. `decode` turns the text into `raw`: types that mirror the TOML key by key, nothing checked but keys and
//!    types. Values remember the bytes that they were read from (`at`), and `source` turns bytes into lines.
//! 3. `validate` turns `raw` into [`model`]: types that hold only legal values, with references resolved to
//!    indices, defaults filled in, and MACs and addresses derived from names (`derive`). One idea a file.
//!
//! No step stops at the first problem. A text that is not TOML, or nested too deeply (`tree`), is one problem; unknown keys and wrong types
//! are taken out and the rest is read and checked all the same; [`Problems`] has them all, sorted by place,
//! and prints them as rustc does. A file with a problem gives no topology.
//!
//! [`own`]: what the owner of a tenant has set beside the operator.
//!
//! [`plan`] says what changes from one topology to another, by name.
//!
//! What the file asks for and this version does not enforce yet is checked as everything else, and listed in
//! [`Topology::unenforced`], so that a daemon can refuse to run without it.
//!
//! Limits: 1 MiB of text, 32 levels of tables and lists, 64 KiB of each owner, 4096 NICs, 1024 tenants, 1024 peerings, 64 uplinks; 256 networks a tenant, 16 subnets
//! a network, 32 NICs a VM. The work is bounded by them: a hostile file is answered, not suffered.

#![forbid(unsafe_code)]

mod at;
mod decode;
mod derive;
mod drop_ins;
pub mod mac;
pub mod model;
pub mod own;
pub mod place;
pub mod plan;
pub mod policy;
mod problem;
mod raw;
mod source;
mod tree;
mod units;
mod validate;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use decode::Decoded;
pub use mac::Mac;
pub use model::*;
pub use place::Place;
pub use plan::Plan;
pub use policy::*;
pub use problem::{Problem, Problems, nearest};
use source::Source;
pub use units::show_rate;
use validate::context::Context;

/// Bytes that a file may have.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reads and checks the file at `path`, with those of its `.d` folder.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read(path: &Path) -> Result<Topology, Problems> {
    parse(&path.display().to_string(), &read_text(path)?)
}

/// Reads the file at `path` and those in the folder of the same name that ends in `.d`, as one text; checks nothing of
/// what they say.
///
/// # Errors
///
/// One is no file, they are too large, or not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Problems> {
    drop_ins::read(path, read_file(path)?)
}

fn read_file(path: &Path) -> Result<String, Problems> {
    let name = path.display().to_string();
    let bytes = bytes(path).map_err(|(message, help)| Problems::whole(&name, message, help))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        not_utf8(&name, error.as_bytes(), at)
    })
}

/// Checks `text`, one file or all of [`read_text`]; `name` is the topology file's in the report.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse(name: &str, text: &str) -> Result<Topology, Problems> {
    if own::operators_bytes(text) > MAX_BYTES {
        let (message, help) = too_large();
        return Err(Problems::whole(name, message, help));
    }
    let source = Source::new(name, text);
    let Decoded { file, left } = decode::decode(&source);
    let Some(raw) = file else {
        return Err(Problems::new(source, left.problems));
    };
    let mut ctx = Context::new(&source, left);
    let topology = validate::validate(&raw, &mut ctx);
    let problems = ctx.problems;
    if problems.is_empty() { Ok(topology) } else { Err(Problems::new(source, problems)) }
}

/// JSON schema of the file, for editors: keys and types, not what the checks add.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(raw::RawFile).to_value()
}

impl Topology {
    /// Tenant and VM of `tenant/vm`, as indices.
    #[must_use]
    pub fn find_vm(&self, path: &str) -> Option<(usize, usize)> {
        let (tenant_name, vm_name) = path.split_once('/')?;
        let index = self.tenants.iter().position(|tenant| tenant.name == tenant_name)?;
        let vm = self.tenants.get(index)?.vms.iter().position(|vm| vm.name == vm_name)?;
        Some((index, vm))
    }
}

type Refusal = (String, Option<&'static str>);

fn bytes(path: &Path) -> Result<Vec<u8>, Refusal> {
    let unreadable = |error: std::io::Error| (format!("cannot read the file: {error}"), None);
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(("not a regular file".to_owned(), None));
    }
    let mut bytes = Vec::new();
    // It may be a pipe by now.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(("not a regular file".to_owned(), None));
    }
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES { Err(too_large()) } else { Ok(bytes) }
}

fn too_large() -> Refusal {
    ("the file is larger than 1 MiB".to_owned(), Some("a topology file has 1 MiB at most"))
}

fn not_utf8(name: &str, bytes: &[u8], at: usize) -> Problems {
    // What is quoted up to that place is the same in both texts.
    let source = Source::new(name, &String::from_utf8_lossy(bytes));
    let span = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
    let problem = Problem::new(&source, span, "not UTF-8".to_owned(), "save the file as UTF-8".to_owned());
    Problems::new(source, vec![problem])
}
