use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::*;
use crate::demo_guest::ring::Segment;

#[test]
fn frames_are_cut_into_segments() {
    let lens = |segments: Vec<Segment>| segments.iter().map(|s| s.len).collect::<Vec<_>>();
    for (header, total, count, wanted) in [
        (12, 72, 1, vec![72]),
        (12, 72, 2, vec![12, 60]),
        (12, 72, 4, vec![12, 20, 20, 20]),
        (12, 14, 32, vec![12, 1, 1]),
        (0, 4096, 3, vec![1366, 1366, 1364]),
        (12, 12, 2, vec![12]),
    ] {
        let segments = cut(1000, header, total, count);
        assert!(
            segments
                .iter()
                .scan(1000, |at, s| {
                    let here = *at;
                    *at += u64::from(s.len);
                    Some(here == s.addr)
                })
                .all(|ok| ok)
        );
        assert_eq!(lens(segments), wanted, "{header} {total} {count}");
    }
}

/// A receive ring of 8 buffers of 100 bytes, filled, and the device's side of it.
fn receive_ring() -> (Vring, Queue, Ram) {
    let options = NicOptions { ring_size: 8, ..NicOptions::default() };
    let mut ram = Ram::new(1 << 20, true).unwrap();
    let mut vring = vring(&mut ram, &options, VERSION_1, 100).unwrap();
    while let Some(head) = vring.ring.next_head(1) {
        vring.ring.add(&cut(vring.buffer(head), 0, 100, 1), true).unwrap();
    }
    vring.ring.publish().unwrap();
    let layout = vring.ring.layout();
    let mut queue = Queue::new(8).unwrap();
    queue.set_desc_table_address(Some(u32::try_from(layout.desc).unwrap()), None);
    queue.set_avail_ring_address(Some(u32::try_from(layout.avail).unwrap()), None);
    queue.set_used_ring_address(Some(u32::try_from(layout.used).unwrap()), None);
    queue.set_ready(true);
    (vring, queue, ram)
}

/// The device fills the next buffers with `bytes`, 100 in each.
fn give(queue: &mut Queue, ram: &Ram, bytes: &[u8]) {
    for piece in bytes.chunks(100) {
        let mut chain = queue.iter(ram.memory()).unwrap().next().unwrap();
        let head = chain.head_index();
        ram.memory().write_slice(piece, chain.next().unwrap().addr()).unwrap();
        queue.add_used(ram.memory(), head, u32::try_from(piece.len()).unwrap()).unwrap();
    }
}

fn with_header(num_buffers: u16, frame: &[u8]) -> Vec<u8> {
    let mut bytes = VnetHeader { num_buffers, gso_size: 7, ..VnetHeader::default() }.to_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

#[test]
fn received_buffers_are_merged() {
    let (mut vring, mut queue, ram) = receive_ring();
    let frame: Vec<u8> = (0..=255).collect();
    for (len, buffers) in [(60, 1), (88, 1), (89, 2), (256, 3)] {
        give(&mut queue, &ram, &with_header(buffers, &frame[..len]));
        let (header, taken) = take_frame(&mut vring, &ram, 12, true).unwrap().unwrap();
        assert_eq!((header.num_buffers, header.gso_size), (buffers, 7));
        assert_eq!(taken, frame[..len]);
        assert!(take_frame(&mut vring, &ram, 12, true).unwrap().is_none());
    }
}

#[test]
fn what_a_device_must_not_give_is_an_error() {
    let (mut vring, mut queue, ram) = receive_ring();
    give(&mut queue, &ram, &with_header(2, &[1; 10]));
    let result = take_frame(&mut vring, &ram, 12, true);
    assert!(matches!(result, Err(GuestError::ShortMerge { promised: 2, used: 1 })), "{result:?}");
    give(&mut queue, &ram, &[0; 11]);
    assert!(matches!(take_frame(&mut vring, &ram, 12, true), Err(GuestError::ShortFrame(11))));
    // Without MRG_RXBUF nobody looks at the number.
    give(&mut queue, &ram, &with_header(9, &[3; 10]));
    assert_eq!(take_frame(&mut vring, &ram, 12, false).unwrap().unwrap().1, [3; 10]);
}
