//! One random change to one field of a frame.

use super::forge::{Targets, ether_type};
use super::random::Random;
use crate::hostile::frames::{cut, with};

/// Longer than any MTU here, shorter than a buffer.
const LONGEST: usize = 1900;

/// Changes something.
pub fn mutate(random: &Random, targets: &Targets, frame: Vec<u8>) -> Vec<u8> {
    let ip6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
    match random.below(14) {
        0 => with(frame, 0, &targets.mac(random)),
        1 => with(frame, 6, &targets.mac(random)),
        2 => with(frame, 12, &ether_type(random)),
        3..=7 if ip6 => field6(random, targets, frame),
        3..=7 => field4(random, targets, frame),
        8 => bits(random, frame),
        9 => bytes(random, frame),
        10 => {
            let len = random.below(frame.len());
            cut(frame, len)
        }
        11 => lengthened(random, targets, frame),
        12 => transport(random, frame, ip6),
        _ => moved(random, frame),
    }
}

fn field4(random: &Random, targets: &Targets, frame: Vec<u8>) -> Vec<u8> {
    match random.below(10) {
        0 | 1 => with(frame, 26, &targets.address4(random).octets()),
        2..=4 => with(frame, 30, &targets.address4(random).octets()),
        5 => with(frame, 14, &[random.of([0x45, 0x46, 0x4f, 0x40, 0x65, random.byte()])]),
        6 => with(frame, 16, &random.of([0, 20, 28, 60, u16::MAX, random.word()]).to_be_bytes()),
        7 => with(frame, 20, &random.word().to_be_bytes()),
        8 => with(frame, 22, &[random.of([0, 1, 2, 255])]),
        _ => with(frame, 23, &[random.of([0, 1, 2, 4, 6, 17, 41, 47, 50, 58, 132, random.byte()])]),
    }
}

fn field6(random: &Random, targets: &Targets, frame: Vec<u8>) -> Vec<u8> {
    match random.below(10) {
        0 | 1 => with(frame, 22, &targets.address6(random).octets()),
        2..=4 => with(frame, 38, &targets.address6(random).octets()),
        5 => with(frame, 14, &[random.of([0x60, 0x45, 0x6f, random.byte()])]),
        6 => with(frame, 18, &random.of([0, 8, 40, u16::MAX, random.word()]).to_be_bytes()),
        7 => with(frame, 20, &[random.of([0, 1, 4, 6, 17, 41, 43, 44, 50, 58, 59, 60, random.byte()])]),
        _ => with(frame, 21, &[random.of([0, 1, 2, 255])]),
    }
}

/// Ports, lengths and types behind the IP header.
fn transport(random: &Random, frame: Vec<u8>, ip6: bool) -> Vec<u8> {
    let at = if ip6 { 54 } else { 34 };
    let known = random.of([0, 53, 67, 68, 123, 546, 547, 3784, 4789, 6081, u16::MAX, random.word()]);
    with(frame, at + 2 * random.below(5), &known.to_be_bytes())
}

fn bits(random: &Random, mut frame: Vec<u8>) -> Vec<u8> {
    let at = random.below(frame.len().min(120));
    frame.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << random.below(8));
    frame
}

fn bytes(random: &Random, mut frame: Vec<u8>) -> Vec<u8> {
    for _ in 0..1 + random.below(6) {
        let at = random.below(frame.len().min(120));
        frame.get_mut(at).into_iter().for_each(|byte| *byte = random.byte());
    }
    frame
}

fn lengthened(random: &Random, targets: &Targets, mut frame: Vec<u8>) -> Vec<u8> {
    frame.extend(targets.canary.bytes(random.below(600)));
    frame.truncate(LONGEST);
    frame
}

/// A piece of the frame over another one.
fn moved(random: &Random, mut frame: Vec<u8>) -> Vec<u8> {
    let (from, to, len) = (random.below(frame.len()), random.below(frame.len().min(80)), random.below(24));
    let piece: Vec<u8> = frame.iter().skip(from).take(len).copied().collect();
    frame.iter_mut().skip(to).zip(piece).for_each(|(byte, new)| *byte = new);
    frame
}
