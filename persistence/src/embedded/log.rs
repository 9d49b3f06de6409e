//! The session logs: segment files `log/<session>/<segment>.log`, written by one thread.
//!
//! The thread takes every append that waits, writes them, and makes them durable with one sync (per segment, which is
//! one but for moments). An append costs one fdatasync and two thread switches.
//!
//! Invariants: an append is answered only after its bytes are synced, and its directory entries too; bytes are written
//! only after all bytes before them are synced or void; after a failed sync nothing more is written, since what the
//! file then holds is unknown.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use perdure_types::{Seq, SessionId};
use tokio::sync::{mpsc, oneshot};

use super::{
    dir::{refuses_writes, sync_directory},
    segment::{self, Entry, MAX_BATCH_BYTES, SegmentId},
};
use crate::{LogRow, Result, StoreError};

const QUEUE: usize = 256;
/// Bytes that one sync covers at most, so that a burst does not make the first of it wait for the last.
const MAX_GROUP_BYTES: usize = 4 << 20;
/// Files grow by this much ahead of the data: then most syncs have no file size to write.
const GROW_BYTES: u64 = 1 << 20;
const MAX_OPEN_SEGMENTS: usize = 4;

type Reply = oneshot::Sender<Result<()>>;

pub(super) enum Job {
    Append { id: SegmentId, row: LogRow, reply: Reply },
    Delete { id: SegmentId, reply: Reply },
}

/// Up to where each segment that is being written is durable. Readers stop there.
type Durable = Arc<Mutex<HashMap<SegmentId, u64>>>;

/// Reads segments, and sends appends to the thread.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    jobs: mpsc::Sender<Job>,
    durable: Durable,
    /// The last segment read: pages of one segment are asked for one after the other.
    last_read: Mutex<Option<(Version, Arc<Vec<Entry>>)>>,
}

/// What was scanned: the segment, up to where it was durable if it was being written, and its length.
type Version = (SegmentId, Option<u64>, u64);

impl Log {
    /// `sync` is false for a store that need not outlive its process. `guard` lives as long as the thread does.
    pub fn start<G: Send + 'static>(
        directory: PathBuf,
        sync: bool,
        guard: G,
    ) -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let durable = Durable::default();
        let writer = Writer {
            directory: directory.clone(),
            sync,
            durable: durable.clone(),
            open: BTreeMap::new(),
            uses: 0,
            deleted: HashSet::new(),
            failed: None,
            buffer: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("perdure-log".into()).spawn(move || {
            writer.run(queue);
            drop(guard);
        })?;
        Ok((Self { directory, jobs, durable, last_read: Mutex::new(None) }, thread))
    }

    pub async fn append(&self, session: SessionId, row: LogRow) -> Result<()> {
        if row.batch.len() > MAX_BATCH_BYTES {
            return Err(StoreError::ReadOnly(format!("a log row of {} bytes is too large", row.batch.len())));
        }
        let (reply, answer) = oneshot::channel();
        self.send(Job::Append { id: SegmentId { session, segment: row.segment }, row, reply }, answer).await
    }

    pub async fn delete_segment(&self, session: SessionId, segment: u32) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Delete { id: SegmentId { session, segment }, reply }, answer).await
    }

    async fn send(&self, job: Job, answer: oneshot::Receiver<Result<()>>) -> Result<()> {
        let stopped = || StoreError::ReadOnly("the log writer has stopped".into());
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Blocks on the disk.
    pub fn read(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Result<Vec<LogRow>> {
        let id = SegmentId { session, segment };
        let file = match File::open(path(&self.directory, id)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(id, &error)),
        };
        let entries = self.entries(id, &file)?;
        let start = entries.partition_point(|entry| entry.seq < from);
        let (mut rows, mut total) = (Vec::new(), 0);
        for entry in &entries[start..] {
            if page_ends(&mut total, entry.batch_len, rows.len(), max_bytes) {
                break;
            }
            let batch = read_batch(&file, entry).map_err(|error| unreadable(id, &error))?;
            rows.push(LogRow { segment, seq: entry.seq, acknowledged: entry.acknowledged, batch });
        }
        Ok(rows)
    }

    fn entries(&self, id: SegmentId, file: &File) -> Result<Arc<Vec<Entry>>> {
        loop {
            let durable = durable_end(&self.durable, id);
            let length = file.metadata().map_err(|error| unreadable(id, &error))?.len();
            let version = (id, durable, length);
            let mut last = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((scanned, entries)) = last.as_ref()
                && *scanned == version
            {
                return Ok(entries.clone());
            }
            let scan = segment::scan(id, file, durable);
            if durable.is_none() && durable_end(&self.durable, id).is_some() {
                // The writer has begun on it: what the scan saw may be half of a write.
                continue;
            }
            let entries = Arc::new(scan?.entries);
            *last = Some((version, entries.clone()));
            return Ok(entries);
        }
    }
}

fn durable_end(durable: &Durable, id: SegmentId) -> Option<u64> {
    durable.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
}

fn read_batch(mut file: &File, entry: &Entry) -> io::Result<Bytes> {
    let mut batch = vec![0; entry.batch_len];
    file.seek(SeekFrom::Start(entry.batch_at))?;
    io::Read::read_exact(&mut file, &mut batch)?;
    Ok(batch.into())
}

fn unreadable(id: SegmentId, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot read {id}: {error}"))
}

fn session_directory(directory: &Path, session: SessionId) -> PathBuf {
    directory.join(session.to_string())
}

fn path(directory: &Path, id: SegmentId) -> PathBuf {
    session_directory(directory, id.session).join(format!("{:010}.log", id.segment))
}

struct OpenSegment {
    file: File,
    /// Everything before is durable, everything after void.
    end: u64,
    allocated: u64,
    last_use: u64,
}

struct Writer {
    directory: PathBuf,
    sync: bool,
    durable: Durable,
    open: BTreeMap<SegmentId, OpenSegment>,
    uses: u64,
    /// A late repeat of an append does not bring a deleted segment back.
    deleted: HashSet<SegmentId>,
    /// Set for good when a sync failed.
    failed: Option<String>,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut appends = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Append { id, row, reply } => {
                        bytes += row.batch.len();
                        appends.push((id, row, reply));
                    }
                    Job::Delete { id, reply } => {
                        self.append_group(&mut appends);
                        // Whoever waited may be gone: so in all replies here.
                        let _ = reply.send(self.delete(id));
                    }
                }
                if bytes < MAX_GROUP_BYTES {
                    next = queue.try_recv().ok();
                }
            }
            self.append_group(&mut appends);
        }
        for segment in self.open.values() {
            let _ = segment.file.set_len(segment.end);
        }
    }

    fn append_group(&mut self, appends: &mut Vec<(SegmentId, LogRow, Reply)>) {
        while let Some(&(id, ..)) = appends.first() {
            let mut group = Vec::new();
            for append in std::mem::take(appends) {
                if append.0 == id { group.push((append.1, append.2)) } else { appends.push(append) }
            }
            let (rows, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            match self.append(id, &rows) {
                Ok(()) => replies.into_iter().for_each(|reply| drop(reply.send(Ok(())))),
                Err(error) => {
                    tracing::error!(segment = %id, %error, "append to the log failed");
                    replies.into_iter().for_each(|reply| drop(reply.send(Err(again(&error)))));
                }
            }
        }
    }

    fn append(&mut self, id: SegmentId, rows: &[LogRow]) -> Result<()> {
        if let Some(reason) = &self.failed {
            return Err(StoreError::ReadOnly(reason.clone()));
        }
        if self.deleted.contains(&id) {
            return Ok(());
        }
        self.open(id)?;
        let Self { open, buffer, sync, durable, failed, .. } = self;
        let Some(segment) = open.get_mut(&id) else {
            return Err(StoreError::Unavailable(format!("{id} is not open")));
        };
        buffer.clear();
        for row in rows {
            segment::encode(id, row, segment.end, buffer);
        }
        // A failed write leaves void bytes, which the next one overwrites.
        segment.write(buffer, *sync).map_err(|error| write_error(id, &error))?;
        if *sync && let Err(error) = segment.file.sync_data() {
            let reason = format!("{id} cannot be made durable: {error}; restart when the disk is well");
            *failed = Some(reason.clone());
            return Err(StoreError::ReadOnly(reason));
        }
        segment.end += buffer.len() as u64;
        durable.lock().unwrap_or_else(PoisonError::into_inner).insert(id, segment.end);
        if buffer.capacity() > MAX_GROUP_BYTES {
            *buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes sure that the segment is in `open`.
    fn open(&mut self, id: SegmentId) -> Result<()> {
        self.uses += 1;
        if let Some(segment) = self.open.get_mut(&id) {
            segment.last_use = self.uses;
            return Ok(());
        }
        while self.open.len() >= MAX_OPEN_SEGMENTS {
            self.close_least_used();
        }
        let io = |error: io::Error| write_error(id, &error);
        let session = session_directory(&self.directory, id.session);
        let path = path(&self.directory, id);
        let (new_session, new) = (!session.exists(), !path.exists());
        fs::create_dir_all(&session).map_err(io)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let end = if new { 0 } else { self.void_after_end(id, &file)? };
        if self.sync && new {
            sync_directory(&session).map_err(io)?;
        }
        if self.sync && new_session {
            sync_directory(&self.directory).map_err(io)?;
        }
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(id, end);
        self.open.insert(id, OpenSegment { file, end, allocated: end, last_use: self.uses });
        Ok(())
    }

    /// Of a segment that an earlier process left: what a torn write left must not stand after a good frame.
    fn void_after_end(&self, id: SegmentId, file: &File) -> Result<u64> {
        let end = segment::scan(id, file, None)?.end;
        let cut = file.set_len(end).and_then(|()| if self.sync { file.sync_all() } else { Ok(()) });
        cut.map_err(|error| write_error(id, &error))?;
        Ok(end)
    }

    fn close_least_used(&mut self) {
        let Some(id) = self.open.iter().min_by_key(|(_, segment)| segment.last_use).map(|(id, _)| *id) else {
            return;
        };
        if let Some(segment) = self.open.remove(&id) {
            // Only gives back space taken ahead.
            let _ = segment.file.set_len(segment.end);
        }
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn delete(&mut self, id: SegmentId) -> Result<()> {
        self.deleted.insert(id);
        self.open.remove(&id);
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        match fs::remove_file(path(&self.directory, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(id, &error)),
            Ok(()) | Err(_) => {}
        }
        // Fails while there are other segments.
        let _ = fs::remove_dir(session_directory(&self.directory, id.session));
        Ok(())
    }
}

impl OpenSegment {
    fn write(&mut self, bytes: &[u8], grow: bool) -> io::Result<()> {
        let end = self.end + bytes.len() as u64;
        if grow && end > self.allocated {
            self.file.set_len(end + GROW_BYTES)?;
            self.allocated = end + GROW_BYTES;
        }
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(bytes)
    }
}

fn write_error(id: SegmentId, error: &io::Error) -> StoreError {
    let message = format!("cannot write {id}: {error}");
    if refuses_writes(error) { StoreError::ReadOnly(message) } else { StoreError::Unavailable(message) }
}

/// Whether a page of about `max_bytes` ends before a row of `bytes`: it has at least one row.
pub(super) fn page_ends(total: &mut usize, bytes: usize, rows: usize, max_bytes: usize) -> bool {
    *total += bytes;
    rows > 0 && *total > max_bytes
}

/// The same error for each waiter of a group.
pub(super) fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(message) => StoreError::Unavailable(message.clone()),
        StoreError::Indeterminate(message) => StoreError::Indeterminate(message.clone()),
        StoreError::Corrupt(message) => StoreError::Corrupt(message.clone()),
        StoreError::ReadOnly(message) => StoreError::ReadOnly(message.clone()),
    }
}
