//! Segment files of a spool, as a process finds them after a crash or on a damaged disk.
use edge_proxy::events::EventRecord;
use edge_proxy::storage::spool::format::{RecordState, ScannedRecord, scan, segment_header, write_record};

/// `s`: the rest is what follows the header of a segment. `d`: a byte of a segment is damaged; where, by which
/// bits, then the payloads, a line each.
pub fn spool(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind {
        b's' => any_segment(rest),
        b'd' => damaged(rest),
        _ => {}
    }
}

fn header() -> Vec<u8> {
    segment_header([7; 16]).to_vec()
}

/// For any content of a segment, each byte is part of one entry at most, in order; what is intact is read the
/// same when it is written again.
fn any_segment(rest: &[u8]) {
    let segment = [&header()[..], rest].concat();
    let (mut end, mut again, mut found) = (header().len(), header(), Vec::new());
    for record in scan(&segment) {
        match record {
            ScannedRecord::Intact { number, state, offset, payload } => {
                assert!(offset >= end, "an entry overlaps the one before it");
                end = offset + 32 + payload.len();
                let _ = EventRecord::read_head(payload);
                if state != RecordState::Done {
                    write_record(number, state, payload, &mut again);
                    found.push((number, state, payload.to_vec()));
                }
            }
            ScannedRecord::Damaged(range) | ScannedRecord::Truncated(range) => {
                assert!(
                    range.start >= end && range.end > range.start && range.end <= segment.len(),
                    "{range:?}"
                );
                end = range.end;
            }
        }
        assert!(end <= segment.len());
    }
    let read = scan(&again).map(|record| match record {
        ScannedRecord::Intact { number, state, payload, .. } => (number, state, payload.to_vec()),
        other => panic!("what was just written is {other:?}"),
    });
    assert_eq!(read.collect::<Vec<_>>(), found);
}

/// One damaged byte costs one record, and yields none that was not written.
fn damaged(data: &[u8]) {
    let (Some(&[high, low, bits]), Some(text)) = (data.first_chunk::<3>(), data.get(3..)) else { return };
    // Payloads are JSON, and so UTF-8.
    let text = String::from_utf8_lossy(text).into_owned();
    let payloads: Vec<&str> = text.split('\n').collect();
    let mut segment = header();
    for (number, payload) in payloads.iter().enumerate() {
        write_record(number as u64, RecordState::Waiting, payload.as_bytes(), &mut segment);
    }
    let records = segment.len() - header().len();
    let place = header().len() + (usize::from(high) << 8 | usize::from(low)) % records;
    segment[place] ^= bits;
    let mut left = 0;
    for record in scan(&segment) {
        let ScannedRecord::Intact { number, payload, .. } = record else { continue };
        let written = usize::try_from(number).ok().and_then(|number| payloads.get(number));
        assert_eq!(written.map(|text| text.as_bytes()), Some(payload), "record {number} was not written so");
        left += 1;
    }
    assert!(left + 1 >= payloads.len(), "{left} of {} records are left", payloads.len());
}
