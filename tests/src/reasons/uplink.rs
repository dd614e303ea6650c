//! Reasons that are at the uplink's device.

use anyhow::Result;

use super::{Case, Stage};
use crate::Wan;
use crate::hostile::frames::{Host, udp4};
use crate::process::output;

/// Opens one more queue of a tap and sets something of the device by ioctl(2): what another program may do to it.
const SET: &str = r#"
my ($device, $request, $value) = @ARGV;
open(my $tun, "+<", "/dev/net/tun") or die "open: $!";
my $ifreq = pack("a16 s x22", $device, 0x5102); # IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR
ioctl($tun, 0x400454ca, $ifreq) or die "TUNSETIFF: $!";
my $number = pack("i", $value);
ioctl($tun, hex($request), $number) or die "$request: $!";
"#;
/// linux/if_tun.h: TUNSETSNDBUF and TUNSETVNETHDRSZ.
const SEND_BUFFER: &str = "0x400454d4";
const HEADER_LEN: &str = "0x400454d8";

/// The device is down.
pub const UPLINK_DOWN: Case = Case {
    meaning: "out of a tap that was taken down",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        stage.run("ip link set vmr0 down")?;
        let frame = outward(stage, 100)?;
        stage.send("acme/a", &[frame])?;
        stage.run("ip link set vmr0 up")
    },
};

/// What the kernel holds for the device may not be more.
pub const UPLINK_BUSY: Case = Case {
    meaning: "10 frames out of a tap behind which the kernel holds them up",
    port: "acme/a.0",
    // The first one passes, the second one is held, or the first one still when the second comes.
    count: (7, 9),
    blames: None,
    produce: |stage| {
        stage.run("tc qdisc add dev wan0 root tbf rate 8bit burst 1540 limit 100000")?;
        stage.run("tc qdisc add dev vmr0 ingress")?;
        stage.run("tc filter add dev vmr0 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev wan0")?;
        set(stage, SEND_BUFFER, "1")?;
        let frame = outward(stage, 1400)?;
        stage.flood("acme/a", &frame, 10)?;
        set(stage, SEND_BUFFER, "2147483647")?;
        stage.run("tc qdisc del dev vmr0 ingress")?;
        stage.run("tc qdisc del dev wan0 root")
    },
};

/// The kernel takes no such frame.
pub const UPLINK_ERROR: Case = Case {
    meaning: "out of a tap of which another program has changed the header's length",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        set(stage, HEADER_LEN, "4096")?;
        let frame = outward(stage, 100)?;
        stage.send("acme/a", &[frame])?;
        set(stage, HEADER_LEN, "12")
    },
};

fn set(stage: &Stage, request: &str, value: &str) -> Result<()> {
    let mut perl = stage.wan.router.command("perl");
    output(perl.args(["-e", SET, Wan::TAP, request, value])).map(drop)
}

fn outward(stage: &Stage, len: usize) -> Result<Vec<u8>> {
    let a = stage.host("acme/a")?;
    Ok(udp4(a, Host { ip4: Wan::FAR4.parse()?, ..a }, &vec![7; len]))
}
