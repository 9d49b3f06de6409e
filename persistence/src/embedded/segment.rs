//! The format of a log segment file: frames one after the other, then zeros (space taken ahead) or a torn tail.
//!
//! Frames that one sync makes durable are a *group*, and each frame says where its group starts. A group is written only
//! after the group before it is synced. So of a bad frame at offset `o`:
//! - a good frame after it whose group starts after `o` proves that the bad one was once durable, and perhaps
//!   acknowledged: the file is corrupt;
//! - with no such frame it belongs to the last group, which was under way when the machine stopped: the log ends there.
//!
//! The checksum is salted with the session and the segment number: a frame image inside somebody's payload, or a file in
//! the wrong place, is never taken for a frame.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read, Seek, SeekFrom},
};

use perdure_types::{Seq, SessionId};

use crate::{LogRow, StoreError};

const MAGIC: u32 = 0x7265_5071;
const HEADER_BYTES: usize = 36;
/// Larger batches are refused before they are written, and larger lengths not believed when they are read.
pub(super) const MAX_BATCH_BYTES: usize = 64 << 20;

/// Names a segment, and salts its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SegmentId {
    pub session: SessionId,
    pub segment: u32,
}

impl std::fmt::Display for SegmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "log segment {}/{:010}", self.session, self.segment)
    }
}

impl SegmentId {
    fn checksum(&self, header_rest: &[u8], batch: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(self.session.0.as_bytes());
        crc.update(&self.segment.to_le_bytes());
        crc.update(header_rest);
        crc.update(batch);
        crc.finalize()
    }
}

/// Appends the frame of `row` to `out`.
pub(super) fn encode(id: SegmentId, row: &LogRow, group_start: u64, out: &mut Vec<u8>) {
    let mut rest = [0u8; HEADER_BYTES - 8];
    rest[0..4].copy_from_slice(&(row.batch.len() as u32).to_le_bytes());
    rest[4..12].copy_from_slice(&row.seq.0.to_le_bytes());
    rest[12..20].copy_from_slice(&row.acknowledged.0.to_le_bytes());
    rest[20..28].copy_from_slice(&group_start.to_le_bytes());
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&id.checksum(&rest, &row.batch).to_le_bytes());
    out.extend_from_slice(&rest);
    out.extend_from_slice(&row.batch);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

struct Header {
    batch_len: usize,
    seq: Seq,
    acknowledged: Seq,
    group_start: u64,
}

/// The header, if it is one and its batch can fit in what remains.
fn decode_header(bytes: &[u8; HEADER_BYTES], remaining: u64) -> Option<Header> {
    let batch_len = u32_at(bytes, 8) as usize;
    let plausible = u32_at(bytes, 0) == MAGIC
        && batch_len <= MAX_BATCH_BYTES
        && (HEADER_BYTES as u64 + batch_len as u64) <= remaining;
    plausible.then(|| Header {
        batch_len,
        seq: Seq(u64_at(bytes, 12)),
        acknowledged: Seq(u64_at(bytes, 20)),
        group_start: u64_at(bytes, 28),
    })
}

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub seq: Seq,
    pub acknowledged: Seq,
    pub batch_at: u64,
    pub batch_len: usize,
    batch_crc: u32,
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    /// By seq, each once.
    pub entries: Vec<Entry>,
    /// Where the next frame goes: everything after it is void.
    pub end: u64,
}

/// Reads and checks a whole segment. With `durable` everything before that offset must be good, and the rest is not
/// looked at: the file is being written.
pub(super) fn scan(id: SegmentId, file: &File, durable: Option<u64>) -> Result<Scan, StoreError> {
    let io = |error: std::io::Error| StoreError::Unavailable(format!("cannot read {id}: {error}"));
    let length = match durable {
        Some(durable) => durable,
        None => file.metadata().map_err(io)?.len(),
    };
    let mut reader = BufReader::with_capacity(256 << 10, file);
    reader.seek(SeekFrom::Start(0)).map_err(io)?;
    let (mut entries, mut batch, mut end) = (Vec::new(), Vec::new(), 0);
    while let Some(entry) = read_frame(id, &mut reader, end, length - end, &mut batch).map_err(io)? {
        end = entry.batch_at + entry.batch_len as u64;
        entries.push(entry);
    }
    if end < length {
        if durable.is_some() {
            return Err(StoreError::Corrupt(format!("{id}: bad record at byte {end} of {length} durable ones")));
        }
        check_tail(id, file, end, length)?;
    }
    Ok(Scan { entries: check_rows(id, entries)?, end })
}

fn read_frame(
    id: SegmentId,
    reader: &mut impl Read,
    at: u64,
    remaining: u64,
    batch: &mut Vec<u8>,
) -> std::io::Result<Option<Entry>> {
    if remaining < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    if !read_or_end(reader, &mut bytes)? {
        return Ok(None);
    }
    let Some(header) = decode_header(&bytes, remaining) else {
        return Ok(None);
    };
    batch.resize(header.batch_len, 0);
    if !read_or_end(reader, batch)? || id.checksum(&bytes[8..], batch) != u32_at(&bytes, 4) {
        return Ok(None);
    }
    Ok(Some(Entry {
        seq: header.seq,
        acknowledged: header.acknowledged,
        batch_at: at + HEADER_BYTES as u64,
        batch_len: header.batch_len,
        batch_crc: crc32fast::hash(batch),
    }))
}

fn read_or_end(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Decides whether the bytes from `bad` on, which do not begin with a good frame, may be ignored.
fn check_tail(id: SegmentId, mut file: &File, bad: u64, length: u64) -> Result<(), StoreError> {
    let io = |error: std::io::Error| StoreError::Unavailable(format!("cannot read {id}: {error}"));
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(bad)).map_err(io)?;
    file.take(length - bad).read_to_end(&mut tail).map_err(io)?;
    let used = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let magic = MAGIC.to_le_bytes();
    for at in 1..used.saturating_sub(HEADER_BYTES - 1) {
        if tail[at..at + 4] != magic {
            continue;
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&tail[at..at + HEADER_BYTES]);
        let Some(header) = decode_header(&bytes, (tail.len() - at) as u64) else {
            continue;
        };
        let batch = &tail[at + HEADER_BYTES..at + HEADER_BYTES + header.batch_len];
        if header.group_start > bad && id.checksum(&bytes[8..], batch) == u32_at(&bytes, 4) {
            return Err(StoreError::Corrupt(format!(
                "{id}: bad record at byte {bad}, and row {} after it, at byte {}, was written later",
                header.seq.0,
                bad + at as u64,
            )));
        }
    }
    if used > 0 {
        tracing::warn!(segment = %id, at = bad, bytes = used, "torn tail: a write was cut short; it was never acknowledged");
    }
    Ok(())
}

/// Each row once, in order; no row may be missing that a later one knows to be acknowledged.
fn check_rows(id: SegmentId, mut entries: Vec<Entry>) -> Result<Vec<Entry>, StoreError> {
    entries.sort_by_key(|entry| entry.seq);
    for pair in entries.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.seq == b.seq && (a.batch_len, a.batch_crc) != (b.batch_len, b.batch_crc) {
            return Err(StoreError::Corrupt(format!("{id}: row {} has two contents", a.seq.0)));
        }
    }
    entries.dedup_by_key(|entry| entry.seq);
    let acknowledged = entries.iter().map(|entry| entry.acknowledged).max().unwrap_or_default();
    let lost = entries.windows(2).map(|pair| (pair[0].seq.next(), pair[1].seq));
    if let Some((lost, _)) = lost.into_iter().find(|(next, found)| next < found && *next <= acknowledged) {
        return Err(StoreError::Corrupt(format!("{id}: row {} was acknowledged and is missing", lost.0)));
    }
    Ok(entries)
}
