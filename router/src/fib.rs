//! A tenant's forwarding table: a hash of local host routes first, then the longest prefix.
