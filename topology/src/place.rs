//! A place in the operator's files, so that every problem and every drop can name it.

use std::fmt;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

/// Line and column, both from 1, of the key or value in the topology file, or in a file beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The tenant whose file in `topology.d` it is, or who has set it; empty: the topology file itself.
    #[serde(rename = "tenant_file", default, skip_serializing_if = "ArrayString::is_empty")]
    pub tenant: ArrayString<32>,
    /// Whether that tenant's owner has set it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// Line, from 1; 0 means that no line of a file caused it.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The file's name without its folder; what an owner has set is in no folder. `None`: the topology file itself.
    #[must_use]
    pub fn file(&self) -> Option<String> {
        match (self.tenant.is_empty(), self.own) {
            (true, _) => None,
            (false, false) => Some(format!("{}.toml", self.tenant)),
            (false, true) => Some(own_file(&self.tenant)),
        }
    }

    /// With the path of its file in front, where `main` is that of the topology file.
    #[must_use]
    pub fn below(&self, main: &str) -> String {
        match self.file() {
            None => format!("{main}:{self}"),
            Some(_) if self.own => self.to_string(),
            Some(_) => format!("{}/{self}", crate::drop_ins::folder(main)),
        }
    }
}

/// What the tables are called that the owner of a tenant has set.
pub(crate) fn own_file(tenant: &str) -> String {
    format!("{tenant}'s own file")
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = self.file() {
            write!(f, "{file}:")?;
        }
        write!(f, "{}:{}", self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_name_their_file() {
        let main = Place { line: 3, column: 7, ..Place::default() };
        assert_eq!(main.below("/etc/vmrouter/topology.toml"), "/etc/vmrouter/topology.toml:3:7");
        let acme = Place { tenant: ArrayString::from("acme").unwrap(), ..main };
        assert_eq!(acme.to_string(), "acme.toml:3:7");
        assert_eq!(acme.below("/etc/vmrouter/topology.toml"), "/etc/vmrouter/topology.d/acme.toml:3:7");
        assert_eq!(acme.below("rack"), "rack.d/acme.toml:3:7");
        let own = Place { own: true, ..acme };
        assert_eq!(own.below("rack"), "acme's own file:3:7");
    }
}
