use super::*;
use proptest::prelude::*;

fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let bytes: Vec<u8> = [code, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.try_into().unwrap()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[test]
fn headers_that_cannot_be_trusted() {
    let good = Header::parse(header(1, 1, 0)).unwrap();
    assert_eq!(good, Header { code: 1, need_reply: false, size: 0 });
    assert!(Header::parse(header(1, 9, 4096)).unwrap().need_reply);
    let version = |flags| matches!(Header::parse(header(1, flags, 0)), Err(SessionError::Version(_)));
    assert!(version(0) && version(2) && version(3));
    let flags = |flags| matches!(Header::parse(header(1, flags, 0)), Err(SessionError::Flags(_)));
    assert!(flags(5) && flags(0x11) && flags(0x8000_0001));
    let long = |size| matches!(Header::parse(header(1, 1, size)), Err(SessionError::TooLong(_)));
    assert!(long(4097) && long(u32::MAX));
}

#[test]
fn replies_have_the_request_code_and_the_reply_flag() {
    let request = Header { code: 17, need_reply: true, size: 0 };
    assert_eq!(request.reply(&[7, 8]), [header(17, 5, 2).as_slice(), &[7, 8]].concat());
}

#[test]
fn decodes_what_front_ends_send() {
    let region = Region { guest_phys: 1, size: 2, user_addr: 3, mmap_offset: 4 };
    let addresses = RingAddresses { flags: 1, desc: 10, used: 20, avail: 30, log: 40 };
    let table = [u32s(&[2, 0]), u64s(&[1, 2, 3, 4, 1, 2, 3, 4])].concat();
    let addr = [u32s(&[1, 1]), u64s(&[10, 20, 30, 40])].concat();
    let config = [u32s(&[2, 4, 1]), vec![0; 4]].concat();
    let cases = [
        (1, vec![], Request::GetFeatures),
        (6, u64s(&[6144, 4096]), Request::SetLogBase { size: 6144, offset: 4096 }),
        (7, vec![], Request::SetLogFd),
        (19, u64s(&[0x1234]), Request::SendRarp(0x1234)),
        (39, u64s(&[15]), Request::SetStatus(15)),
        (40, vec![], Request::GetStatus),
        (42, u32s(&[1, 0]), Request::SetDeviceStateFd { direction: 1, phase: 0 }),
        (43, vec![], Request::CheckDeviceState),
        (2, u64s(&[5]), Request::SetFeatures(5)),
        (5, table, Request::SetMemTable(vec![region, region])),
        (8, u32s(&[1, 256]), Request::SetVringNum { index: 1, num: 256 }),
        (9, addr, Request::SetVringAddr { index: 1, addresses }),
        (10, u32s(&[1, 7]), Request::SetVringBase { index: 1, base: 7 }),
        (11, u32s(&[1, 0]), Request::GetVringBase { index: 1 }),
        (12, u64s(&[3]), Request::SetVringKick { index: 3, fd: true }),
        (13, u64s(&[0x103]), Request::SetVringCall { index: 3, fd: false }),
        (14, u64s(&[0x200]), Request::SetVringErr { index: 0x200, fd: true }),
        (18, u32s(&[u32::MAX, 1]), Request::SetVringEnable { index: 0xffff_ffff, num: 1 }),
        (24, config, Request::GetConfig { offset: 2, size: 4, flags: 1 }),
        (37, u64s(&[0, 1, 2, 3, 4]), Request::AddMemReg(region)),
    ];
    for (code, payload, wanted) in cases {
        assert_eq!(Request::decode(code, &payload).unwrap(), wanted);
    }
}

#[test]
fn refuses_wrong_sizes_and_counts() {
    let region = u64s(&[0, 0x1000, 0, 0]);
    let table = |count, regions: usize| [u32s(&[count, 0]), region.repeat(regions)].concat();
    let cases: [(u32, Vec<u8>); 19] = [
        (1, vec![0]),
        (2, vec![0; 7]),
        (2, vec![0; 9]),
        (5, vec![]),
        (5, vec![1, 0, 0, 0]),
        (5, table(0, 0)),
        (5, table(1, 2)),
        (5, table(2, 1)),
        (5, table(33, 33)),
        (5, table(u32::MAX, 1)),
        (8, vec![0; 12]),
        (9, vec![0; 32]),
        (24, vec![0; 11]),
        (24, [u32s(&[0, u32::MAX, 0]), vec![0; 4]].concat()),
        (37, vec![0; 32]),
        (0, vec![]),
        (45, vec![]),
        (6, vec![0; 15]),
        (6, vec![0; 17]),
    ];
    for (code, payload) in cases {
        assert!(Request::decode(code, &payload).is_err(), "{code} {payload:?}");
    }
}

proptest! {
    #[test]
    fn never_panics(code in 0_u32..64, payload in proptest::collection::vec(any::<u8>(), 0..2048)) {
        if let Ok(Request::SetMemTable(regions)) = Request::decode(code, &payload) {
            prop_assert!(regions.len() * 32 + 8 == payload.len());
        }
    }

    #[test]
    fn headers_never_panic(bytes in any::<[u8; HEADER_LEN]>()) {
        if let Ok(header) = Header::parse(bytes) {
            prop_assert!(header.size <= 4096);
        }
    }
}
