//! `topology.d/TENANT.toml`: files beside the topology file, each of which describes one tenant.
//!
//! The topology file and its drop-ins travel as one text, so that what is checked, applied, kept and taken back is one
//! thing: the file itself, and then, for each drop-in, a line `#:file TENANT` and its content. Each part is TOML of its own
//! (a line of one never ends up in a table of another) and places are counted in it. The trees of the parts are joined
//! before anything is read from them; so a tenant may refer to uplinks of the topology file, and peerings and tests there
//! to it.
//!
//! What a tenant's owner has set stands behind them, after a line `#:owner TENANT` each: see `own`.

use std::ops::Range;
use std::path::Path;

use arrayvec::ArrayString;
use serde_spanned::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::at::Span;
use crate::problem::{Problem, Problems};
use crate::source::Source;
use crate::validate::names::is_name;

/// Begins the line in front of each drop-in.
const MARK: &str = "#:file ";
/// Begins the line in front of what an owner has set.
pub(crate) const OWN_MARK: &str = "#:owner ";
/// Those of one folder: no more tenants than a topology may have.
const MOST: usize = 1024;

/// One file in the text of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The tenant that it describes; empty: it is the topology file.
    pub(crate) tenant: ArrayString<32>,
    /// Whether that tenant's owner has set it, and not the operator.
    pub(crate) own: bool,
    /// Its bytes.
    pub(crate) bytes: Range<usize>,
}

/// The folder of the drop-ins of the file at `main`: `topology.d` beside `topology.toml`.
pub(crate) fn folder(main: &str) -> String {
    format!("{}.d", main.strip_suffix(".toml").unwrap_or(main))
}

/// The parts of a text: the topology file first, then the others in their order.
pub(crate) fn parts(text: &str) -> Vec<Part> {
    let mut parts = vec![Part { tenant: ArrayString::new(), own: false, bytes: 0..text.len() }];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        let marked = [(MARK, false), (OWN_MARK, true)].into_iter().find_map(|(mark, own)| {
            Some((ArrayString::from(line.strip_prefix(mark)?.trim_end()).ok()?, own))
        });
        if let Some((tenant, own)) = marked.filter(|(tenant, _)| is_name(tenant)) {
            if let Some(before) = parts.last_mut() {
                before.bytes.end = at;
            }
            parts.push(Part { tenant, own, bytes: end..text.len() });
        }
        at = end;
    }
    parts
}

/// Puts a part behind `text`, with its mark in front.
pub(crate) fn append(text: &mut String, mark: &str, tenant: &str, part: &str) {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{mark}{tenant}\n{part}"));
}

/// The text of all: that of the file at `path`, and of the files in the folder beside it.
pub(crate) fn read(path: &Path, main: String) -> Result<String, Problems> {
    let folder = folder(&path.display().to_string());
    let unreadable =
        |error: std::io::Error| Problems::whole(&folder, format!("cannot read the folder: {error}"), None);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(main),
        Err(error) => return Err(unreadable(error)),
    };
    let mut tenants = Vec::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy();
        // Editors leave other names, and hidden ones.
        let Some(tenant) = name.strip_suffix(".toml").filter(|_| !name.starts_with('.')) else { continue };
        if !is_name(tenant) {
            let help = Some("call it TENANT.toml: [a-z0-9-], 32 characters at most");
            let message = format!("the name of {name:?} is not that of a tenant");
            return Err(Problems::whole(&folder, message, help));
        }
        tenants.push(tenant.to_owned());
    }
    tenants.sort();
    if tenants.len() > MOST {
        return Err(Problems::whole(&folder, format!("more than {MOST} files"), None));
    }
    let mut text = main;
    if !tenants.is_empty() {
        unmarked(&path.display().to_string(), &text)?;
    }
    for tenant in tenants {
        let path = Path::new(&folder).join(format!("{tenant}.toml"));
        let drop_in = crate::read_file(&path)?;
        unmarked(&path.display().to_string(), &drop_in)?;
        append(&mut text, MARK, &tenant, &drop_in);
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > crate::MAX_BYTES {
            let message = "the files are larger than 1 MiB together".to_owned();
            return Err(Problems::whole(&folder, message, None));
        }
    }
    Ok(text)
}

/// What looks like another file would be taken for it.
pub(crate) fn unmarked(name: &str, text: &str) -> Result<(), Problems> {
    match parts(text).get(1) {
        Some(part) => Err(marked(name, text, part)),
        None => Ok(()),
    }
}

/// The problem that `part` begins in a file of its own.
pub(crate) fn marked(name: &str, text: &str, part: &Part) -> Problems {
    // The line before.
    let line = text.get(..part.bytes.start).unwrap_or_default().lines().count();
    let mark = if part.own { OWN_MARK } else { MARK };
    let message =
        format!("line {line} begins with {mark:?} and a name, as the files of one text are told apart");
    Problems::whole(name, message, Some("remove that line"))
}

/// Puts the tenant of a drop-in into the tree of all; says what else the drop-in has.
pub(crate) fn join<'t>(
    all: &mut DeTable<'t>,
    tree: DeTable<'t>,
    part: &Part,
    source: &Source,
    problems: &mut Vec<Problem>,
) {
    let mut is_described = false;
    let mut refuse = |span: Span, message: String, help: &str| {
        problems.push(Problem::new(source, span, message, help.to_owned()));
    };
    for (key, value) in tree {
        let (name, span) = (key.get_ref().to_string(), key.span());
        match (name.as_str(), value.into_inner()) {
            ("version", DeValue::Integer(number)) if number.as_str() == "1" => {}
            ("version", _) => {
                refuse(span, "this is not version 1".to_owned(), "it is that of the topology file")
            }
            ("tenant", DeValue::Table(tenants)) => {
                let Some(known) = table(all, key) else { continue };
                for (name, tenant) in tenants {
                    let (word, span) = (name.get_ref().to_string(), name.span());
                    is_described = true;
                    if word != *part.tenant {
                        let help = format!("rename the file, or describe {:?} only", &*part.tenant);
                        refuse(span, format!("tenant {word:?} in the file of another"), &help);
                    } else if known.contains_key(word.as_str()) {
                        refuse(
                            span,
                            format!("tenant {word:?} is described twice"),
                            "the topology file has it too",
                        );
                    } else {
                        known.insert(name, tenant);
                    }
                }
            }
            _ => refuse(
                span,
                format!("{name:?} in the file of a tenant"),
                "such a file has [tenant.NAME] tables only; all else is for the topology file",
            ),
        }
    }
    // One that was cut off must not take its tenant's network away.
    if !is_described {
        let start = part.bytes.start;
        let message = format!("the file of tenant {:?} does not describe it", &*part.tenant);
        refuse(
            start..start,
            message,
            "remove the file, if the tenant is to go; [tenant.NAME] alone is enough",
        );
    }
}

/// The table of tenants, made if there is none; `None`: it is something else.
fn table<'a, 't>(all: &'a mut DeTable<'t>, key: Spanned<DeString<'t>>) -> Option<&'a mut DeTable<'t>> {
    let none = Spanned::new(key.span(), DeValue::Table(DeTable::new()));
    let DeValue::Table(table) = all.entry(key).or_insert(none).get_mut() else { return None };
    Some(table)
}

/// The same tree with spans that count from the start of the whole text.
pub(crate) fn shift(tree: DeTable<'_>, by: usize) -> DeTable<'_> {
    let shift_key = |key: &Span| key.start + by..key.end + by;
    tree.into_iter()
        .map(|(key, value)| (Spanned::new(shift_key(&key.span()), key.into_inner()), shift_value(value, by)))
        .collect()
}

fn shift_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shift(table, by)),
        DeValue::Array(array) => {
            DeValue::Array(array.into_iter().map(|value| shift_value(value, by)).collect())
        }
        leaf @ (DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)) => leaf,
    };
    Spanned::new(span.start + by..span.end + by, value)
}

#[cfg(test)]
mod tests {

    const MAIN: &str =
        "version = 1\n[uplink.lab]\nkind = \"tap\"\ndevice = \"t\"\naddresses = [\"10.9.0.1/24\"]\n";
    const ACME: &str =
        "tenant.acme.uplinks = [\"lab\"]\ntenant.acme.network.lan.subnets = [\"10.0.0.0/24\"]\n";

    fn problems(text: &str) -> String {
        crate::parse("t.toml", text).map_or_else(|problems| problems.to_string(), |_| String::new())
    }

    #[test]
    fn a_tenant_of_its_own_file_uses_what_the_topology_file_has() {
        let text = format!("{MAIN}[tenant.b]\n#:file acme\n{ACME}vm.x = 1\n#:file beta\n[tenant.beta]\n");
        assert_eq!(problems(&text), "t.d/acme.toml:3:1: \"vm\" in the file of a tenant");
        let topology = crate::parse("t.toml", &text.replace("vm.x = 1\n", "")).unwrap();
        let names: Vec<_> = topology.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
        assert_eq!(names, ["b", "acme", "beta"]);
        let acme = &topology.tenants[1];
        assert_eq!((acme.uplinks.len(), acme.networks[0].at.to_string()), (1, "acme.toml:2:21".to_owned()));
    }

    #[test]
    fn each_file_describes_its_tenant_once() {
        for (main, drop_in, wanted) in [
            ("", "[tenant.beta]", "t.d/acme.toml:1:9: tenant \"beta\" in the file of another"),
            ("[tenant.acme]", "[tenant.acme]", "t.d/acme.toml:1:9: tenant \"acme\" is described twice"),
            ("", "version = 2\n[tenant.acme]", "t.d/acme.toml:1:1: this is not version 1"),
            ("", "version = 1", "t.d/acme.toml:1:1: the file of tenant \"acme\" does not describe it"),
            ("", "# nothing", "t.d/acme.toml:1:1: the file of tenant \"acme\" does not describe it"),
            ("", "[tenant.acme]", ""),
            ("", "[peering.p]\n[tenant.acme]", "t.d/acme.toml:1:2: \"peering\" in the file of a tenant"),
            ("", "\n[tenant", "t.d/acme.toml:2:8: unclosed table"),
            ("tenant = 1", "[tenant.acme]", "t.toml:2:10: invalid type: integer `1`"),
            ("tenant.acme = 1", "[tenant.acme]", "t.toml:2:15: invalid type: integer `1`"),
        ] {
            let found = problems(&format!("version = 1\n{main}\n#:file acme\n{drop_in}\n"));
            assert!(
                found.starts_with(wanted) && found.is_empty() == wanted.is_empty(),
                "{drop_in:?}: {found}"
            );
        }
    }

    #[test]
    fn files_are_read_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("rack.toml");
        std::fs::write(&main, "version = 1").unwrap();
        assert_eq!(crate::read_text(&main).unwrap(), "version = 1");
        let beside = folder.path().join("rack.d");
        std::fs::create_dir(&beside).unwrap();
        for (name, text) in
            [("b.toml", "[tenant.b]"), ("a.toml", "[tenant.a]\n"), ("a.toml~", "x"), (".c.toml", "x")]
        {
            std::fs::write(beside.join(name), text).unwrap();
        }
        assert_eq!(
            crate::read_text(&main).unwrap(),
            "version = 1\n#:file a\n[tenant.a]\n#:file b\n[tenant.b]"
        );
        assert_eq!(crate::read(&main).unwrap().tenants.len(), 2);
        std::fs::write(beside.join("b.toml"), "[tenant.b]\n#:file c\n[tenant.c]").unwrap();
        let found = crate::read_text(&main).unwrap_err().to_string();
        assert!(found.contains("rack.d/b.toml") && found.contains("line 2 begins"), "{found}");
        std::fs::write(beside.join("b.toml"), "#".repeat(usize::try_from(crate::MAX_BYTES).unwrap() - 9))
            .unwrap();
        assert!(crate::read_text(&main).unwrap_err().to_string().contains("1 MiB together"));
        std::fs::write(beside.join("B B.toml"), "").unwrap();
        assert!(crate::read_text(&main).unwrap_err().to_string().contains("is not that of a tenant"));
    }
}
