//! Segments and checksums of `router` beside those of Linux: the same frame, byte for byte.
//!
//! One difference is allowed, in frames that only want a checksum: where the sum comes out as zero Linux writes 0xffff
//! whatever the protocol (`skb_checksum_help` ends in `CSUM_MANGLED_0`), `router` only for UDP, where zero means "none"
//! (RFC 768). Both are the same number in ones' complement, and every receiver takes either.
//! Nothing else differs: both count the IPv4 identification up by one for each segment, also with DF set; both clear FIN
//! and PSH in all segments but the last, and CWR in all but the first, whether or not the vnet header has its ECN bit.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test from its first line to its last"
)]

use anyhow::{Result, ensure};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use router::checksum::{add, ones_complement_sum, pseudo_header4, pseudo_header6};
use router::offload::check;
use router::segment::segment;
use router::vnet::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use router::{Headers, VnetHeader};
use tests::kernel::Kernel;
use tests::{full_run, skip};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SOURCE: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 10, 1, 2, 3];
const DESTINATION: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 10, 9, 8, 7];

/// A frame as a driver leaves it, and how it is to be cut.
#[derive(Clone, Debug)]
struct Case {
    v6: bool,
    udp: bool,
    /// Type of service and flow label, or identification, flags and time to live.
    ip_fields: [u8; 8],
    /// IPv4 options: multiples of 4 bytes.
    ip_options: Vec<u8>,
    /// IPv6 extension headers of 8 bytes: hop-by-hop options, then destination options.
    extensions: usize,
    /// Sequence, acknowledgement number, reserved bits, flags, window, urgent pointer.
    tcp_fields: [u8; 14],
    /// Multiples of 4 bytes.
    tcp_options: Vec<u8>,
    payload: usize,
    seed: u32,
    /// Payload of one segment; 0: the frame only wants its checksum.
    size: u16,
    ecn: bool,
}

impl Case {
    fn l4(&self) -> usize {
        if self.v6 { 54 + 8 * self.extensions } else { 34 + self.ip_options.len() }
    }

    fn protocol(&self) -> u8 {
        if self.udp { UDP } else { TCP }
    }

    fn layer4_len(&self) -> usize {
        self.payload + if self.udp { 8 } else { 20 + self.tcp_options.len() }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 5];
        frame.extend(if self.v6 { self.ipv6() } else { self.ipv4() });
        frame.extend(self.layer4());
        frame
    }

    fn ipv4(&self) -> Vec<u8> {
        let header_len = 20 + self.ip_options.len();
        let [tos, i0, i1, flags, ttl, ..] = self.ip_fields;
        let mut header = vec![0x08, 0x00, 0x40 + u8::try_from(header_len / 4).unwrap(), tos];
        header.extend(u16::try_from(header_len + self.layer4_len()).unwrap().to_be_bytes());
        // Of the flags only DF: no fragment is cut, and no reserved bit is sent.
        header.extend([i0, i1, flags & 0x40, 0, ttl, self.protocol(), 0, 0]);
        header.extend(&SOURCE[12..]);
        header.extend(&DESTINATION[12..]);
        header.extend(&self.ip_options);
        let checksum = !ones_complement_sum(&header[2..], 0);
        header[12..14].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self) -> Vec<u8> {
        let [a, b, c, d, hops, ..] = self.ip_fields;
        let mut header = vec![0x86, 0xdd, 0x60 | a & 0x0f, b, c, d];
        header.extend(u16::try_from(8 * self.extensions + self.layer4_len()).unwrap().to_be_bytes());
        let next = [0, 60].into_iter().take(self.extensions).chain([self.protocol()]).collect::<Vec<_>>();
        header.extend([next[0], hops]);
        header.extend(SOURCE);
        header.extend(DESTINATION);
        for next in &next[1..] {
            header.extend([*next, 0, 1, 4, 0, 0, 0, 0]); // PadN
        }
        header
    }

    fn layer4(&self) -> Vec<u8> {
        let len = u16::try_from(self.layer4_len()).unwrap();
        let seed = match (SOURCE, DESTINATION) {
            (s, d) if self.v6 => pseudo_header6(s.into(), d.into(), self.protocol(), len),
            ([.., a, b, c, d], [.., e, f, g, h]) => {
                pseudo_header4([a, b, c, d].into(), [e, f, g, h].into(), self.protocol(), len)
            }
        };
        let mut bytes = vec![0x9c, 0x40, 0x00, 0x50];
        if self.udp {
            bytes.extend(len.to_be_bytes());
            bytes.extend(seed.to_be_bytes());
        } else {
            let [s0, s1, s2, s3, a0, a1, a2, a3, reserved, flags, w0, w1, u0, u1] = self.tcp_fields;
            let words = u8::try_from(5 + self.tcp_options.len() / 4).unwrap();
            bytes.extend([s0, s1, s2, s3, a0, a1, a2, a3, words << 4 | reserved & 0x0f, flags, w0, w1]);
            bytes.extend(seed.to_be_bytes());
            bytes.extend([u0, u1]);
            bytes.extend(&self.tcp_options);
        }
        let mut state = self.seed | 1;
        bytes.extend((0..self.payload).map(|_| {
            // xorshift: proptest itself would take most of the test's time for 64 KiB of random bytes.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        }));
        bytes
    }

    fn vnet(&self) -> VnetHeader {
        let gso_type = match (self.size, self.udp, self.v6) {
            (0, _, _) => 0,
            (_, true, _) => GSO_UDP_L4,
            (_, false, v6) => (if v6 { GSO_TCPV6 } else { GSO_TCPV4 }) | if self.ecn { GSO_ECN } else { 0 },
        };
        let header_len = self.l4() + self.layer4_len() - self.payload;
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: u16::try_from(header_len).unwrap(),
            gso_size: self.size,
            csum_start: u16::try_from(self.l4()).unwrap(),
            csum_offset: if self.udp { 6 } else { 16 },
            num_buffers: 0,
        }
    }
}

/// What `router` makes of it.
fn ours(vnet: VnetHeader, frame: &[u8], l4: usize, protocol: u8) -> Vec<Vec<u8>> {
    let mut head = Headers::of(vnet, frame);
    (head.l3, head.l4, head.protocol) = (14, u16::try_from(l4).unwrap(), protocol);
    head.offload = check(&head).expect("a legal frame");
    let mut segments = Vec::new();
    segment(frame, &head, &mut Vec::new(), &mut |bytes| segments.push(bytes.to_vec()));
    segments
}

fn words(most: usize) -> impl Strategy<Value = Vec<u8>> {
    // Nobody on the way looks at options, so any bytes will do.
    (0..=most).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 4))
}

/// `udp` and `cut`: large frames; else such that only want their checksum.
fn case(udp: impl Strategy<Value = bool>, cut: bool) -> impl Strategy<Value = Case> {
    let sizes = prop_oneof![8_u16..40, 500_u16..1600, Just(536), Just(1448), Just(1460), 4000_u16..9001];
    let headers = (any::<bool>(), udp, any::<[u8; 8]>(), words(10), 0_usize..3, any::<[u8; 14]>(), words(10));
    (headers, any::<u32>(), sizes, any::<bool>(), 1_usize..65_000, any::<bool>()).prop_map(
        move |(
            (v6, udp, ip_fields, ip_options, extensions, tcp_fields, tcp_options),
            seed,
            size,
            ecn,
            len,
            odd,
        )| {
            let mut case = Case {
                v6,
                udp,
                ip_fields,
                ip_options: if v6 { Vec::new() } else { ip_options },
                extensions: if v6 { extensions } else { 0 },
                tcp_fields,
                tcp_options,
                payload: 0,
                seed,
                size: if cut { size } else { 0 },
                ecn,
            };
            // The whole packet is at most 65,535 bytes, and a large frame has at least two segments, and no more than are
            // legal (`router::offload::check`).
            let size = usize::from(size);
            let room = 65_535 - 40 - case.l4() - case.layer4_len();
            let (least, most) = if cut { (size + 1, size * if udp { 128 } else { 2048 }) } else { (0, 9000) };
            case.payload = least + len % (most.min(room) - least);
            if odd && cut {
                case.payload -= case.payload % size; // every segment is full
                case.payload = case.payload.max(2 * size);
            }
            case
        },
    )
}

/// Compares both answers to `case`, in number, order and every byte.
fn compare(kernel: &Kernel, case: &Case) -> Result<(), TestCaseError> {
    let (vnet, frame) = (case.vnet(), case.frame());
    let ours = ours(vnet, &frame, case.l4(), case.protocol());
    if case.size > 0 {
        prop_assert_eq!(ours.len(), case.payload.div_ceil(usize::from(case.size)));
    }
    let fail = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
    prop_assert!(kernel.give(vnet, &frame).map_err(fail)?, "the kernel refuses the vnet header {:?}", vnet);
    let mut theirs = kernel.take(ours.len()).map_err(fail)?;
    prop_assert_eq!(theirs.len(), ours.len(), "segments of Linux and of the router");
    for (index, (theirs, ours)) in theirs.iter_mut().zip(&ours).enumerate() {
        if case.size == 0 && !case.udp {
            allow_other_zero(theirs, ours, case.l4() + 16);
        }
        let differ = theirs.iter().zip(ours).position(|(a, b)| a != b);
        let at = differ.unwrap_or(0);
        prop_assert!(
            theirs == ours,
            "segment {} differs at byte {:?} (layer 4 at {}): Linux {:02x?} ({} bytes), router {:02x?} ({} bytes)",
            index,
            differ,
            case.l4(),
            theirs.get(at..).map(|b| &b[..b.len().min(8)]),
            theirs.len(),
            ours.get(at..).map(|b| &b[..b.len().min(8)]),
            ours.len(),
        );
    }
    Ok(())
}

/// See the head of this file.
fn allow_other_zero(theirs: &mut [u8], ours: &[u8], at: usize) {
    if let (Some(linux @ &mut [0xff, 0xff]), Some(&[0, 0])) =
        (theirs.get_mut(at..at + 2), ours.get(at..at + 2))
    {
        linux.fill(0);
    }
}

/// Skips, or gives the kernel's side.
fn kernel(name: &str) -> Result<Option<Kernel>> {
    let needs = [skip::root(), skip::program("ethtool"), skip::program("sysctl")];
    if skip::unless(name, &needs) { Ok(None) } else { Kernel::new().map(Some) }
}

fn run(kernel: &Kernel, cases: impl Strategy<Value = Case>) -> Result<()> {
    let count = if full_run() { 30_000 } else { 300 };
    let config =
        Config { cases: count, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    TestRunner::new(config).run(&cases, |case| compare(kernel, &case))?;
    Ok(())
}

#[test]
fn tcp_segments_are_those_of_linux() -> Result<()> {
    let Some(kernel) = kernel("tcp_segments_are_those_of_linux")? else { return Ok(()) };
    run(&kernel, case(Just(false), true))
}

#[test]
fn udp_segments_are_those_of_linux() -> Result<()> {
    let name = "udp_segments_are_those_of_linux";
    let Some(kernel) = kernel(name)? else { return Ok(()) };
    let probe = Case {
        v6: false,
        udp: true,
        ip_fields: [64; 8],
        ip_options: Vec::new(),
        extensions: 0,
        tcp_fields: [0; 14],
        tcp_options: Vec::new(),
        payload: 100,
        seed: 1,
        size: 60,
        ecn: false,
    };
    let known = kernel.give(probe.vnet(), &probe.frame())?;
    kernel.take(if known { 2 } else { 0 })?;
    if !known {
        let reason = "needs a kernel whose taps take UDP segmentation (6.2)".to_owned();
        assert!(skip::unless(name, &[Err(reason)]));
        return Ok(());
    }
    run(&kernel, case(Just(true), true))
}

#[test]
fn checksums_are_those_of_linux() -> Result<()> {
    let Some(kernel) = kernel("checksums_are_those_of_linux")? else { return Ok(()) };
    run(&kernel, case(any::<bool>(), false))
}

/// The one difference that is allowed, made on purpose: it is there, and it is only this.
#[test]
fn only_a_sum_of_zero_is_written_in_another_way() -> Result<()> {
    let Some(kernel) = kernel("only_a_sum_of_zero_is_written_in_another_way")? else { return Ok(()) };
    for (udp, linux, router) in [(false, [0xff, 0xff], [0, 0]), (true, [0xff, 0xff], [0xff, 0xff])] {
        let case = Case {
            v6: true,
            udp,
            ip_fields: [64; 8],
            ip_options: Vec::new(),
            extensions: 0,
            tcp_fields: [7; 14],
            tcp_options: Vec::new(),
            payload: 100,
            seed: 5,
            size: 0,
            ecn: false,
        };
        let (mut frame, field) = (case.frame(), case.l4() + usize::from(case.vnet().csum_offset));
        // The last word makes up what is missing to 0xffff.
        let at = frame.len() - 2;
        frame[at..].fill(0);
        let sum = ones_complement_sum(&frame[case.l4()..], 0);
        frame[at..].copy_from_slice(&(!sum).to_be_bytes());
        ensure!(add(sum, !sum) == 0xffff);
        let mut ours = ours(case.vnet(), &frame, case.l4(), case.protocol()).swap_remove(0);
        ensure!(kernel.give(case.vnet(), &frame)?);
        let mut theirs = kernel.take(1)?;
        ensure!(theirs.len() == 1);
        let mut theirs = theirs.swap_remove(0);
        ensure!(theirs[field..field + 2] == linux && ours[field..field + 2] == router, "UDP: {udp}");
        theirs[field..field + 2].fill(0);
        ours[field..field + 2].fill(0);
        ensure!(theirs == ours, "more differs than the checksum");
    }
    Ok(())
}
