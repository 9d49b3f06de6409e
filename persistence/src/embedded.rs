//! The store of one machine: a directory that one process holds. Session logs are files of their own ([`log`]), all else
//! is in redb ([`tables`], [`writer`]).
//!
//! Stronger than the trait asks: writes take effect in the order in which they were sent, and reads see what was
//! acknowledged. A call that was dropped is not taken back.

mod dir;
mod log;
mod segment;
mod tables;
mod visibility;
mod writer;

use std::{path::PathBuf, sync::Arc, thread::JoinHandle};

use async_trait::async_trait;
use perdure_types::{ChainKey, Seq, SessionId, ShardId, SlotCount, Timestamp};
use tempfile::TempDir;

use dir::DataDirectory;
pub use dir::{FORMAT, OpenError};
use log::Log;
use tables::Reader;
use writer::{Job, TableWriter};

use crate::{
    Cas, ClusterSettings, HeadRow, HistoryRow, IdMatch, ListedRun, LogRow, NamespaceRow, Result, RunRow, SessionRow,
    ShardRow, StampedWrite, Store, StoreError, VisibilityCount, VisibilityQuery, Wakeup, telemetry,
};

/// How to open an [`Embedded`] store.
#[derive(Debug, Clone)]
pub struct Config {
    pub directory: PathBuf,
    /// Memory for pages of the tables.
    pub cache_bytes: usize,
}

impl Config {
    pub const DEFAULT_CACHE_BYTES: usize = 16 << 20;

    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), cache_bytes: Self::DEFAULT_CACHE_BYTES }
    }
}

/// The store. Dropping it waits until everything sent is written, and releases the directory.
#[derive(Debug)]
pub struct Embedded {
    parts: Option<Parts>,
    threads: Vec<JoinHandle<()>>,
    // After the threads: fields are dropped in order.
    directory: Arc<DataDirectory>,
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
struct Parts {
    log: Arc<Log>,
    reader: Reader,
    writer: TableWriter,
}

impl Embedded {
    /// Opens the store in a directory, which it creates if need be. Blocks on the disk, for milliseconds.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        Self::start(config, None)
    }

    /// A store in a temporary directory, which goes when the store does. Nothing is synced.
    pub fn ephemeral() -> Result<Self, OpenError> {
        let parent = std::env::temp_dir();
        let temporary = tempfile::Builder::new().prefix("perdure-").tempdir_in(&parent);
        let temporary = temporary.map_err(|error| OpenError::from_io(&parent, &error))?;
        Self::start(&Config::new(temporary.path()), Some(temporary))
    }

    fn start(config: &Config, temporary: Option<TempDir>) -> Result<Self, OpenError> {
        let io = |error: std::io::Error| OpenError::from_io(&config.directory, &error);
        let directory = Arc::new(DataDirectory::open(&config.directory)?);
        let database = match &temporary {
            None => {
                let database = tables::open(&directory, config.cache_bytes)?;
                directory.set_created()?;
                database
            }
            Some(_) => tables::open_unsynced(&directory, config.cache_bytes)?,
        };
        let database = Arc::new(database);
        let (log, log_thread) = Log::start(directory.log(), temporary.is_none(), directory.clone()).map_err(io)?;
        let (writer, table_thread) = TableWriter::start(database.clone(), directory.clone()).map_err(io)?;
        let parts = Parts { log: Arc::new(log), reader: Reader(database), writer };
        let threads = vec![log_thread, table_thread];
        Ok(Self { parts: Some(parts), threads, directory, _temporary: temporary })
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("present until the store is dropped")
    }

    /// For reads that may be long: off the async threads.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Reader) -> Result<T> + Send + 'static) -> Result<T> {
        let reader = self.parts().reader.clone();
        blocking(move || read(&reader)).await
    }
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(read).await;
    joined.map_err(|error| StoreError::Unavailable(format!("the read did not finish: {error}")))?
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Closes the queues, which ends the threads when they have emptied them.
        self.parts = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a writer thread of the store panicked");
            }
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn cluster_settings(&self, proposal: ClusterSettings) -> Result<ClusterSettings> {
        self.parts().writer.send(|reply| Job::Settings { proposal, reply }).await
    }

    async fn read_goal(&self) -> Result<Option<SlotCount>> {
        self.parts().reader.goal()
    }

    async fn cas_goal(&self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>> {
        self.parts().writer.send(|reply| Job::Goal { expected, new, reply }).await
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceRow>> {
        self.read(Reader::namespaces).await
    }

    async fn cas_namespace(&self, expected: Option<u64>, row: NamespaceRow) -> Result<Cas<NamespaceRow>> {
        self.parts().writer.send(|reply| Job::Namespace { expected, row, reply }).await
    }

    async fn list_sessions(&self) -> Result<Vec<(SessionId, SessionRow)>> {
        self.read(Reader::sessions).await
    }

    async fn read_session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        telemetry::timed("fence_read", async { self.parts().reader.session(id) }).await
    }

    async fn read_session_serial(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.parts().reader.session(id)
    }

    async fn cas_session(
        &self,
        id: SessionId,
        expected: Option<SessionRow>,
        new: SessionRow,
    ) -> Result<Cas<SessionRow>> {
        self.parts().writer.send(|reply| Job::Session { id, expected, new: Some(new), reply }).await
    }

    async fn delete_session(&self, id: SessionId, expected: SessionRow) -> Result<Cas<SessionRow>> {
        let expected = Some(expected);
        self.parts().writer.send(|reply| Job::Session { id, expected, new: None, reply }).await
    }

    async fn append(&self, session: SessionId, row: LogRow) -> Result<()> {
        telemetry::timed("append", self.parts().log.append(session, row)).await
    }

    async fn read_log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Result<Vec<LogRow>> {
        let log = self.parts().log.clone();
        blocking(move || log.read(session, segment, from, max_bytes)).await
    }

    async fn delete_segment(&self, session: SessionId, segment: u32) -> Result<()> {
        self.parts().log.delete_segment(session, segment).await
    }

    async fn list_shards(&self) -> Result<Vec<(ShardId, ShardRow)>> {
        self.read(Reader::shards).await
    }

    async fn read_shard_serial(&self, id: ShardId) -> Result<Option<ShardRow>> {
        self.parts().reader.shard(id)
    }

    async fn cas_shard(&self, id: ShardId, expected: Option<ShardRow>, new: ShardRow) -> Result<Cas<ShardRow>> {
        self.parts().writer.send(|reply| Job::Shard { id, expected, new, reply }).await
    }

    async fn write(&self, writes: Vec<StampedWrite>) -> Result<()> {
        // A stamp that overflows is the caller's to panic on, not the writer thread's.
        let writes = writes.into_iter().map(|StampedWrite { stamp, write }| (stamp.stamp(), write)).collect();
        telemetry::timed("write", self.parts().writer.send(|reply| Job::Write { writes, reply })).await
    }

    async fn read_head(&self, chain: &ChainKey) -> Result<Option<HeadRow>> {
        telemetry::timed("read_execution", async { self.parts().reader.head(chain) }).await
    }

    async fn read_run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        telemetry::timed("read_execution", async { self.parts().reader.run(chain, run_id) }).await
    }

    async fn read_history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        from_event_id: i64,
        until_event_id: i64,
        max_bytes: usize,
        reverse: bool,
    ) -> Result<Vec<HistoryRow>> {
        let (chain, run_id) = (chain.clone(), Arc::<str>::from(run_id));
        let events = (from_event_id, until_event_id);
        let read = self.read(move |reader| reader.history(&chain, &run_id, events, max_bytes, reverse));
        telemetry::timed("read_history", read).await
    }

    async fn read_wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        let after = after.cloned();
        let read = self.read(move |reader| reader.wakeups(shard, after.as_ref(), until, limit));
        telemetry::timed("read_wakeups", read).await
    }

    async fn list_visibility(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>> {
        let query = query.clone();
        telemetry::timed("read_visibility", self.read(move |reader| reader.list_visibility(&query))).await
    }

    async fn find_visibility(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>> {
        let (list_id, ids) = (list_id.to_owned(), ids.clone());
        self.read(move |reader| reader.find_visibility(&list_id, &ids, limit)).await
    }

    async fn count_visibility(&self, list_id: &str) -> Result<Vec<VisibilityCount>> {
        let list_id = list_id.to_owned();
        self.read(move |reader| reader.count_visibility(&list_id)).await
    }
}
