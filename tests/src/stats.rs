//! Reading `packet-stats --json`.
//!
//! The shape: `{"ports": [{"tenant", "vm", "nic", "received", "delivered_vm", "delivered_uplink", "consumed",
//! "held", "drops": {reason: count}}]}`; this is the one place that knows it.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// What was counted at one port.
#[derive(Clone, Debug)]
pub struct PortStats<'s>(&'s Value);

/// All ports in the answer.
///
/// # Errors
/// When the answer has another shape.
pub fn ports(stats: &Value) -> Result<Vec<PortStats<'_>>> {
    let ports =
        stats.get("ports").and_then(Value::as_array).with_context(|| format!("no ports in {stats}"))?;
    Ok(ports.iter().map(PortStats).collect())
}

/// The first NIC of one VM.
///
/// # Errors
/// When it is not in the answer.
pub fn port<'s>(stats: &'s Value, tenant: &str, vm: &str) -> Result<PortStats<'s>> {
    let is = |port: &PortStats<'_>, key: &str, wanted: &str| {
        port.0.get(key).and_then(Value::as_str) == Some(wanted)
    };
    let found = ports(stats)?.into_iter().find(|port| is(port, "tenant", tenant) && is(port, "vm", vm));
    found.with_context(|| format!("{tenant}/{vm} is not in {stats}"))
}

/// Frames from all uplinks that a VM got.
///
/// # Errors
/// When the answer has another shape.
pub fn uplinks_delivered(stats: &Value) -> Result<u64> {
    let is_uplink = |port: &PortStats<'_>| port.0.get("uplink").is_some_and(Value::is_string);
    ports(stats)?.iter().filter(|port| is_uplink(port)).map(|port| port.counter("delivered_vm")).sum()
}

impl PortStats<'_> {
    /// A counter by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.0.get(name).and_then(Value::as_u64).with_context(|| format!("no counter {name} in {}", self.0))
    }

    /// A word by its key.
    ///
    /// # Errors
    /// When there is none.
    pub fn text(&self, name: &str) -> Result<String> {
        let word = self.0.get(name).and_then(Value::as_str);
        word.map(str::to_owned).with_context(|| format!("no {name} in {}", self.0))
    }

    /// Frames dropped for one reason; 0 when it never happened.
    #[must_use]
    pub fn drops(&self, reason: &str) -> u64 {
        self.0.get("drops").and_then(|drops| drops.get(reason)).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Frames dropped for any reason.
    #[must_use]
    pub fn all_drops(&self) -> u64 {
        let drops = self.0.get("drops").and_then(Value::as_object);
        drops.map(|drops| drops.values().filter_map(Value::as_u64).sum()).unwrap_or(0)
    }
}

/// Every frame received at a port must be in exactly one of the other counters.
///
/// # Errors
/// When a port's counters do not add up.
pub fn conserved(stats: &Value) -> Result<()> {
    for port in ports(stats)? {
        let mut sum = port.all_drops();
        for name in ["delivered_vm", "delivered_uplink", "consumed", "held"] {
            sum += port.counter(name)?;
        }
        let received = port.counter("received")?;
        ensure!(sum == received, "received {received}, accounted for {sum}: {}", port.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_frame_is_noticed() {
        let stats = |held: u64| {
            serde_json::json!({"ports": [{"tenant": "t", "vm": "v", "nic": 0, "received": 10, "delivered_vm": 3,
                "delivered_uplink": 2, "consumed": 1, "held": held, "drops": {"no_route": 3}}]})
        };
        conserved(&stats(1)).unwrap();
        assert!(conserved(&stats(0)).is_err());
        assert_eq!(port(&stats(1), "t", "v").unwrap().drops("no_route"), 3);
        assert!(port(&stats(1), "t", "w").is_err());
    }
}
