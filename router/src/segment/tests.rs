use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::offload::{Offload, check};
use crate::samples::Sample;

/// Parses a finished frame with another's parser, and verifies all of its checksums and lengths.
fn verified(frame: &[u8]) -> (NetHeaders, TransportHeader, Vec<u8>) {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let payload = headers.payload.slice().to_vec();
    let (net, transport) = (headers.net.unwrap(), headers.transport.unwrap());
    match &net {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(usize::from(ip.total_len), frame.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        }
        NetHeaders::Ipv6(ip, _) => assert_eq!(usize::from(ip.payload_length), frame.len() - 54),
        NetHeaders::Arp(_) => panic!("no IP"),
    }
    let (found, wanted) = match (&net, &transport) {
        (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv4(ip, &payload).unwrap())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv6(ip, &payload).unwrap())
        }
        (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
            assert_eq!(usize::from(udp.length), 8 + payload.len());
            (udp.checksum, udp.calc_checksum_ipv4(ip, &payload).unwrap())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
            assert_eq!(usize::from(udp.length), 8 + payload.len());
            (udp.checksum, udp.calc_checksum_ipv6(ip, &payload).unwrap())
        }
        _ => panic!("neither TCP nor UDP"),
    };
    assert_eq!(found, wanted);
    (net, transport, payload)
}

/// All frames that `cut` hands out.
fn collect(cut: impl FnOnce(&mut Vec<u8>, &mut dyn FnMut(&[u8]))) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut scratch = vec![0xaa; 10]; // what an earlier frame left
    cut(&mut scratch, &mut |frame| frames.push(frame.to_vec()));
    frames
}

fn segments(frame: &[u8], head: &Headers) -> Vec<Vec<u8>> {
    collect(|scratch, each| segment(frame, head, scratch, &mut |part| each(part)))
}

fn fragments(frame: &[u8], head: &Headers) -> Vec<Vec<u8>> {
    collect(|scratch, each| fragment(frame, head, scratch, &mut |part| each(part)))
}

fn words(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (0..=most).prop_map(|words| vec![1; words * 4]) // no-operations, in IPv4 and in TCP
}

fn sample(udp: bool) -> impl Strategy<Value = Sample> {
    let fields =
        (any::<bool>(), any::<bool>(), words(10), words(10), any::<u8>(), any::<u32>(), any::<u16>());
    (fields, vec(any::<u8>(), 1..40_000)).prop_map(
        move |((v6, extension, ip_options, tcp_options, flags, sequence, id), payload)| Sample {
            v6,
            udp,
            extension: extension && v6,
            ip_options: if v6 { Vec::new() } else { ip_options },
            fragment: 0x4000,
            tcp_options,
            flags,
            sequence,
            id,
            payload,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn tcp_segments_carry_the_whole_stream(sample in sample(false), size in 20..9000_u16) {
        let (frame, mut head) = (sample.frame(), sample.head(size));
        head.offload = check(&head).unwrap();
        prop_assert_eq!(head.offload.gso.is_some(), sample.payload.len() > usize::from(size));
        let parts = segments(&frame, &head);
        prop_assert_eq!(parts.len(), sample.payload.len().div_ceil(size.into()));
        let mut stream = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let (net, transport, payload) = verified(part);
            let (first, last) = (index == 0, index + 1 == parts.len());
            prop_assert_eq!(&part[..14], &frame[..14]);
            if let NetHeaders::Ipv4(ip, _) = net {
                prop_assert_eq!(ip.identification, sample.id.wrapping_add(u16::try_from(index).unwrap()));
                prop_assert!(ip.dont_fragment && !ip.more_fragments);
            }
            let TransportHeader::Tcp(tcp) = transport else { panic!("no TCP") };
            let sent = u32::try_from(stream.len()).unwrap();
            prop_assert_eq!(tcp.sequence_number, sample.sequence.wrapping_add(sent));
            let kept = if last { 0xff } else { 0xf6 } & if first { 0xff } else { 0x7f }; // FIN and PSH, CWR
            prop_assert_eq!(part[sample.l4() + 13], sample.flags & kept);
            prop_assert_eq!(tcp.options.as_slice(), &sample.tcp_options[..]);
            prop_assert!(last || payload.len() == usize::from(size));
            stream.extend(payload);
        }
        prop_assert_eq!(stream, sample.payload);
    }

    #[test]
    fn udp_segments_are_datagrams(mut sample in sample(true), size in 1..3000_u16) {
        sample.payload.truncate(usize::from(size) * 128);
        let (frame, mut head) = (sample.frame(), sample.head(size));
        head.offload = check(&head).unwrap();
        let parts = segments(&frame, &head);
        let datagrams: Vec<_> = parts.iter().map(|part| verified(part).2).collect();
        let wanted: Vec<_> = sample.payload.chunks(size.into()).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(datagrams, wanted);
    }

    #[test]
    fn a_checksum_is_completed(sample in prop_oneof![sample(false), sample(true)]) {
        let (mut frame, head) = (sample.frame(), sample.head(0));
        complete_checksum(&mut frame, check(&head).unwrap().csum.unwrap());
        verified(&frame);
    }

    #[test]
    fn fragments_make_the_packet_again(
        payload in vec(any::<u8>(), 0..20_000),
        ip_options in words(10),
        mtu in 68..3000_u16,
        (dont_fragment, more, offset) in (any::<bool>(), any::<bool>(), 0..4000_u16),
    ) {
        let flags = u16::from(dont_fragment) << 14 | u16::from(more) << 13 | offset;
        let mut sample = Sample { udp: true, ip_options, payload, fragment: flags, id: 77, ..Sample::default() };
        if more {
            sample.payload.truncate(sample.payload.len() / 8 * 8);
        }
        let (frame, mut head) = (sample.frame(), sample.head(0));
        head.fragment_mtu = mtu;
        let parts = fragments(&frame, &head);
        let mut data = Vec::<u8>::new();
        for (index, part) in parts.iter().enumerate() {
            let ip = etherparse::Ipv4Header::from_slice(&part[14..]).unwrap().0;
            prop_assert_eq!(usize::from(ip.total_len), part.len() - 14);
            prop_assert!(ip.total_len <= mtu);
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!(ip.identification, 77);
            prop_assert_eq!(ip.dont_fragment, dont_fragment);
            prop_assert_eq!(ip.more_fragments, more || index + 1 < parts.len());
            prop_assert_eq!(usize::from(ip.fragment_offset.value()) * 8, usize::from(offset) * 8 + data.len());
            data.extend(&part[14 + ip.header_len()..]);
        }
        prop_assert_eq!(&data, &frame[sample.l4()..]);
    }

    /// Hostile vnet headers and frames: an answer without a panic, and whatever is accepted can be carried out.
    #[test]
    fn what_is_accepted_can_be_cut(
        mut sample in prop_oneof![sample(false), sample(true)],
        (flags, gso_type) in (0..4_u8, prop::sample::select(vec![0_u8, 1, 2, 3, 4, 5, 0x80, 0x81, 0x84, 0x85])),
        (gso_size, csum_start, csum_offset) in (prop_oneof![any::<u16>(), 0..64_u16], 0..400_u16, 0..32_u16),
        (keep_start, keep_type) in (any::<bool>(), any::<bool>()),
        (at, byte, cut) in (0..100_usize, any::<u8>(), 0..40_000_usize),
        (l3, l4, protocol) in (any::<u16>(), any::<u16>(), any::<u8>()),
        wild in 0..8_u8,
    ) {
        sample.payload.truncate(cut);
        let mut head = sample.head(gso_size);
        head.vnet.flags = flags;
        if !keep_type {
            head.vnet.gso_type = gso_type;
        }
        if !keep_start {
            (head.vnet.csum_start, head.vnet.csum_offset) = (csum_start, csum_offset);
        }
        head.bytes[at] = byte;
        if wild == 0 {
            (head.l3, head.l4, head.protocol) = (l3, l4, protocol);
        }
        if wild == 1 {
            head.len = head.len.min(csum_start.into());
            head.frame_len = u32::from(l4);
        }
        let mut frame = sample.frame();
        let len = frame.len().min(192);
        frame[..len].copy_from_slice(&head.bytes[..len]);
        if let Ok(offload) = check(&head) {
            head.offload = offload;
            let parts = segments(&frame, &head);
            prop_assert!(!parts.is_empty());
            head.fragment_mtu = csum_start;
            for part in &parts {
                prop_assert!(!fragments(part, &head).is_empty());
            }
        }
    }
}

#[test]
fn options_go_where_they_belong() {
    // Record route (first fragment only), no-operation, router alert (all), end.
    let ip_options = vec![7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 0, 0, 0, 0];
    let sample = Sample { udp: true, ip_options, payload: vec![5; 100], ..Sample::default() };
    let mut head = sample.head(0);
    head.fragment_mtu = 68;
    let parts = fragments(&sample.frame(), &head);
    assert_eq!(parts.len(), 4); // 108 bytes by 32
    assert_eq!(parts[0][34..50], [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 0, 0, 0, 0]);
    for part in &parts[1..] {
        assert_eq!(part[34..50], [1, 1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn hostile_options_and_offsets_end() {
    // A zero-length option, one longer than the list, and an offset at the end of what can be addressed.
    for ip_options in [vec![7, 0, 0, 0], vec![7, 44, 0, 0], vec![1, 1, 1, 7]] {
        let sample = Sample { udp: true, ip_options, payload: vec![5; 100], ..Sample::default() };
        let mut head = sample.head(0);
        head.fragment_mtu = 68;
        assert_eq!(fragments(&sample.frame(), &head).len(), 3);
    }
    let sample = Sample { udp: true, payload: vec![5; 100], fragment: 0x1ffe, ..Sample::default() };
    let mut head = sample.head(0);
    head.fragment_mtu = 28;
    assert_eq!(fragments(&sample.frame(), &head).len(), 2, "offsets 0x1ffe and 0x1fff");
}

#[test]
fn sums_of_zero() {
    let table = [(6, [0xff, 0xff]), (16, [0x00, 0x00])]; // UDP says 0xffff, TCP 0 (RFC 768)
    for (offset, wanted) in table {
        let mut frame = [0; 40];
        frame[0..2].copy_from_slice(&[0xff, 0xff]);
        complete_checksum(&mut frame, Checksum { start: 0, offset });
        assert_eq!(frame[usize::from(offset)..][..2], wanted, "{offset}");
    }
    let mut frame = [1; 8];
    complete_checksum(&mut frame, Checksum { start: 7, offset: 0 });
    complete_checksum(&mut frame, Checksum { start: 0, offset: 7 });
    complete_checksum(&mut frame, Checksum { start: 9, offset: u16::MAX });
    assert_eq!(frame, [1; 8], "beyond the end nothing is written");
}

#[test]
fn udp_without_checksum_stays_without() {
    let sample = Sample { udp: true, payload: vec![7; 250], ..Sample::default() };
    let (mut frame, mut head) = (sample.frame(), sample.head(100));
    frame[40..42].fill(0);
    head.offload = check(&head).unwrap();
    let parts = segments(&frame, &head);
    assert_eq!(parts.iter().map(|part| part[40..42].to_vec()).collect::<Vec<_>>(), vec![vec![0, 0]; 3]);
}

#[test]
fn a_plain_frame_is_one_segment_without_its_padding() {
    let sample = Sample { payload: vec![7; 2], ..Sample::default() };
    let (mut frame, mut head) = (sample.frame(), sample.head(0));
    frame.extend([0xee; 4]);
    head.offload = check(&head).unwrap();
    let parts = segments(&frame, &head);
    assert_eq!(parts.len(), 1);
    assert_eq!(verified(&parts[0]).2, [7, 7]);
    head.offload = Offload::NONE;
    assert_eq!(segments(&frame, &head), vec![sample.frame()]);
}
