//! iperf3 in guests and namespaces.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{Guest, Netns};

/// No test asks for more than 20 seconds of traffic.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a server in the guest; it stays.
///
/// # Errors
/// When it does not start.
pub fn serve(guest: &mut Guest) -> Result<()> {
    guest.ok("iperf3 -s -D && sleep 0.3").map(|_| ())
}

/// Sends TCP from `guest` to `server`; received bits per second. `arguments` are iperf3's, for example
/// `-t 2 -R` (from the server for 2 seconds) or `-n 4M` (4 MiB).
///
/// # Errors
/// When the connection fails.
pub fn tcp(guest: &mut Guest, server: &str, arguments: &str) -> Result<f64> {
    let text = guest.sh(&format!("iperf3 -c {server} -J {arguments}"), LIMIT)?.text;
    received(&text)
}

/// As [`tcp`], from a namespace.
///
/// # Errors
/// When the connection fails.
pub fn tcp_from(netns: &Netns, server: &str, arguments: &str) -> Result<f64> {
    received(&netns.run(&format!("iperf3 -c {server} -J {arguments}"))?)
}

fn received(text: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    rate.with_context(|| format!("no rate in {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let good = r#"{"end": {"sum_received": {"bits_per_second": 1.5e9}}}"#;
        assert_eq!(received(good).unwrap(), 1.5e9);
        let error = received(r#"{"error": "unable to connect"}"#).unwrap_err().to_string();
        assert_eq!(error, r#"iperf3: "unable to connect""#);
        assert!(received("{}").is_err());
    }
}
