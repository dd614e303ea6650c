//! Numbers as people write them: sizes, rates, shares, ports.

use std::ops::RangeInclusive;

/// What was expected instead; goes into the help line.
pub(crate) type Expected = &'static str;

/// Bytes: `1G`, `256M`, `4K`, `2T` (powers of 1024), or plain bytes.
pub(crate) fn size(text: &str) -> Result<u64, Expected> {
    const EXPECTED: Expected = "write a size as \"512M\" or \"4G\" (K, M, G, T are powers of 1024)";
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K')) => (text.get(..at), 10),
        Some((at, 'M')) => (text.get(..at), 20),
        Some((at, 'G')) => (text.get(..at), 30),
        Some((at, 'T')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    digits.and_then(number).and_then(|count| count.checked_mul(1 << shift)).ok_or(EXPECTED)
}

/// A size as the operator would write it.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units.into_iter().find(|&(unit, _)| bytes >= unit && bytes.is_multiple_of(unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, suffix)| format!("{}{suffix}", bytes / unit))
}

/// Bits a second, not zero: `5Gbit`, `500Mbit`, `64Kbit`, `9600bit` (powers of 1000).
pub(crate) fn rate(text: &str) -> Result<u64, Expected> {
    const EXPECTED: Expected = "write a rate as \"500Mbit\" or \"5Gbit\" (bits a second, powers of 1000)";
    let units = [("Kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000), ("bit", 1)];
    units
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .and_then(|(digits, unit)| number(digits)?.checked_mul(unit))
        .filter(|&rate| rate > 0)
        .ok_or(EXPECTED)
}

/// A rate as the operator would write it.
#[must_use]
pub fn show_rate(bits: u64) -> String {
    let units = [(1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "Kbit")];
    let unit = units.into_iter().find(|&(unit, _)| bits >= unit && bits.is_multiple_of(unit));
    unit.map_or_else(|| format!("{bits}bit"), |(unit, suffix)| format!("{}{suffix}", bits / unit))
}

/// Percent of one CPU, not zero: `150%`.
pub(crate) fn percent(text: &str) -> Result<u64, Expected> {
    const EXPECTED: Expected = "write a share of one CPU as \"150%\"";
    text.strip_suffix('%').and_then(number).filter(|&percent| percent > 0).ok_or(EXPECTED)
}

/// One port or a range: `80`, `8000-8100`.
pub(crate) fn ports(text: &str) -> Result<RangeInclusive<u16>, Expected> {
    const EXPECTED: Expected = "write a port as \"80\" or a range as \"8000-8100\", from 1 to 65535";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first).ok_or(EXPECTED)?, port(last).ok_or(EXPECTED)?);
    if first > last { Err(EXPECTED) } else { Ok(first..=last) }
}

/// One port, not zero.
pub(crate) fn port(text: &str) -> Option<u16> {
    number(text).and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0)
}

/// Digits only: `str::parse` alone would take a plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, wanted) in [("1G", 1 << 30), ("256M", 256 << 20), ("2M", 2 << 20), ("4K", 4096), ("7", 7)]
        {
            assert_eq!(size(text), Ok(wanted), "{text}");
            assert_eq!(show_size(wanted), text);
        }
        for bad in ["", "G", "1g", "-1G", "+1G", "1.5G", "1GB", "1 G", "99999999T", "1é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_and_shares() {
        for (text, wanted) in
            [("1Gbit", 1_000_000_000), ("500Mbit", 500_000_000), ("64Kbit", 64_000), ("9bit", 9)]
        {
            assert_eq!(rate(text), Ok(wanted), "{text}");
            assert_eq!(show_rate(wanted), text);
        }
        for bad in ["", "bit", "0Mbit", "1G", "1gbit", "99999999999Gbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert_eq!(percent("150%"), Ok(150));
        for bad in ["150", "%", "0%", "1.5%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(ports("80"), Ok(80..=80));
        assert_eq!(ports("8000-8100"), Ok(8000..=8100));
        for bad in ["", "0", "65536", "90-80", "80-", "-80", "1-2-3", "http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
