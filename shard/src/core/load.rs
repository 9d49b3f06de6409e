//! Bringing chains into memory: on demand, and in recovery from what was not yet in the tables.

use perdure_persistence::{HeadRow, Listing, RunRow, Store, StoreError};
use perdure_proto::perdure::state::v1::{ChainHead, ChainRecord};
use perdure_types::{ChainKey, Position, Timestamp};
use perdure_workflow::Entity;
use prost::Message;

use super::Core;
use crate::{
    entry::{Applied, DeletedRun, Entry, Pending, RunMeta},
    history, kinds,
    log::session::persist,
    recover::{ChainReplay, RecoverError},
    telemetry,
};

/// Rows that a chain needs before its next input can be handled.
#[derive(Debug)]
pub(crate) struct LoadJob {
    pub key: ChainKey,
    /// The head and the current run, too.
    pub head: bool,
    pub run: Option<String>,
}

/// What a load found.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub head: Option<HeadRow>,
    pub runs: Vec<(String, RunRow)>,
}

impl LoadJob {
    pub(crate) async fn run(&self, store: &dyn Store) -> Result<Loaded, StoreError> {
        self.run_with(store, self.run.as_slice()).await
    }

    /// With these runs beside those that the head names.
    async fn run_with(&self, store: &dyn Store, named: &[String]) -> Result<Loaded, StoreError> {
        if !self.head {
            return self.and_runs(store, Loaded::default(), named).await;
        }
        let (head, runs) = store.read_chain(&self.key, named).await?;
        let mut wanted = Vec::new();
        if let Some(row) = &head {
            let head = ChainHead::decode(row.head.clone())
                .map_err(|e| StoreError::Corrupt(format!("head of {:?}: {e}", self.key)))?;
            let current = Some(head.current_run_id).filter(|run_id| !run_id.is_empty());
            wanted.extend(current.into_iter().chain(head.unsettled_run_ids).filter(|run_id| !named.contains(run_id)));
        }
        self.and_runs(store, Loaded { head, runs }, &wanted).await
    }

    async fn and_runs(&self, store: &dyn Store, mut loaded: Loaded, wanted: &[String]) -> Result<Loaded, StoreError> {
        for run_id in wanted {
            if !loaded.runs.iter().any(|(id, _)| id == run_id)
                && let Some(row) = store.read_run(&self.key, run_id).await?
            {
                loaded.runs.push((run_id.clone(), row));
            }
        }
        Ok(loaded)
    }
}

impl Core {
    /// The rows that a load asked for have come.
    pub(crate) fn loaded(&mut self, job: LoadJob, result: Result<Loaded, StoreError>, now: Timestamp) {
        self.now = self.now.max(now);
        let key = job.key.clone();
        let Some(entry) = self.chains.get_mut(&key) else { return };
        entry.loading = false;
        let inserted = result.map_err(|error| history::store_error(&error)).and_then(|loaded| {
            insert(entry, &key, &job, loaded).map_err(|error| {
                tracing::error!(chain = ?key, %error, "stored execution cannot be read");
                perdure_proto::Error::new(perdure_proto::Code::DataLoss, "stored execution is damaged")
            })
        });
        match inserted {
            Ok(()) => {
                telemetry::chain_loaded();
                self.lookahead.unpin(&key);
                self.drain(&key);
            }
            Err(error) => self.load_failed(&key, &error),
        }
    }

    /// Those who wait are told; wake-ups are tried again.
    fn load_failed(&mut self, key: &ChainKey, error: &perdure_proto::Error) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        let queue = std::mem::take(&mut entry.queue);
        let unloaded = entry.chain.is_none();
        for pending in queue {
            match pending {
                Pending::Call { reply: Some(reply), .. } => {
                    let _ = reply.send(Err(error.clone()));
                }
                Pending::Call { reply: None, .. } => {}
                // Until then the chain is pinned: the row would not be read again.
                Pending::Wake { .. } => {
                    let again = self.now + perdure_types::Duration::from_secs(1);
                    self.lookahead.pin(key.clone(), again);
                }
            }
        }
        if unloaded {
            self.remove(key);
        }
    }

    /// Takes a chain that recovery has rebuilt; its effects are derived and its rows written again.
    pub(crate) fn recovered(&mut self, key: ChainKey, mut entry: Entry) {
        entry.listed_dirty = true;
        self.dirty.push_back(key.clone());
        if entry.is_unlisted() {
            self.note_unlisted(&key, &mut entry);
        }
        self.dirty_flag.store(true, std::sync::atomic::Ordering::SeqCst);
        self.chains.insert(key.clone(), Box::new(entry));
        self.drain(&key);
    }
}

fn insert(entry: &mut Entry, key: &ChainKey, job: &LoadJob, loaded: Loaded) -> Result<(), RecoverError> {
    if job.head {
        let head = loaded.head.as_ref();
        entry.head_applied = head.map(|row| Applied::At(row.applied));
        entry.stored_head = head.map(|row| row.applied);
        entry.chain = Some(match head {
            Some(row) => kinds::from_head(key, decode("head", key, &row.head)?),
            None => kinds::from_head(key, ChainHead::default()),
        });
    }
    if let Some(run) = &job.run
        && !loaded.runs.iter().any(|(run_id, _)| run_id == run)
    {
        entry.absent.insert(run.clone());
    }
    for (run_id, row) in loaded.runs {
        insert_run(entry, key, run_id, &row)?;
    }
    // What is new may have something outstanding.
    entry.resumed = false;
    Ok(())
}

fn insert_run(entry: &mut Entry, key: &ChainKey, run_id: String, row: &RunRow) -> Result<(), RecoverError> {
    if let Some(chain) = entry.chain.as_mut()
        && !chain.has_run(&run_id)
    {
        let inserted = chain.insert_run(&run_id, row.snapshot.clone());
        inserted.map_err(|e| undecodable("run", key, &e))?;
        if chain.has_run(&run_id) {
            let status = chain.run_view(&run_id).map_or(0, |view| view.status as i32);
            let listed = listing_of(&**chain, &run_id).into_iter().collect();
            let stored = RunMeta::stored(row.applied, row.wake_at);
            entry.runs.insert(run_id, RunMeta { status, listed, ..stored });
        }
    }
    Ok(())
}

/// What the list shows of a run in this state.
fn listing_of(chain: &dyn Entity, run_id: &str) -> Option<Listing> {
    let info = chain.listing(run_id)?;
    Some(Listing::of(&perdure_visibility::row_of(&info, Timestamp(0))))
}

fn decode<M: Message + Default>(what: &'static str, key: &ChainKey, bytes: &bytes::Bytes) -> Result<M, RecoverError> {
    M::decode(bytes.clone()).map_err(|e| undecodable(what, key, &e))
}

fn undecodable(what: &'static str, key: &ChainKey, error: &prost::DecodeError) -> RecoverError {
    RecoverError::Decode { what, chain: key.clone(), reason: error.to_string() }
}

/// Rebuilds a chain from its rows and the log records after them (C2).
///
/// Rows may be newer than the first records, since a flush is not atomic: a record is skipped for each row that
/// reflects it (M1). All rows are written again: what a broken flush left half done is then whole.
pub(crate) async fn restore(store: &dyn Store, key: &ChainKey, replay: ChainReplay) -> Result<Entry, RecoverError> {
    let job = LoadJob { key: key.clone(), head: true, run: None };
    let surviving = replay.surviving_runs().into_iter().map(str::to_owned);
    let named: Vec<String> = surviving.chain(replay.deleted.keys().cloned()).collect();
    let loaded = persist("read chain", || job.run_with(store, &named)).await?;
    let (deleted_rows, rows): (Vec<_>, Vec<_>) =
        loaded.runs.into_iter().partition(|(run_id, _)| replay.deleted.contains_key(run_id));
    let mut entry = Entry::default();
    insert(&mut entry, key, &job, Loaded { head: loaded.head, runs: rows })?;
    for (run_id, position) in &replay.deleted {
        let stored_wake = deleted_rows.iter().find(|(id, _)| id == run_id).and_then(|(_, row)| row.wake_at);
        let listed = listings_of_deleted(key, run_id, &deleted_rows, &replay.records);
        let (run_id, applied) = (run_id.as_str().into(), Applied::At(*position));
        entry.deleted.push(DeletedRun { run_id, applied, stored_wake, unlisted: true, listed });
    }
    for (position, record) in replay.records {
        apply(&mut entry, position, record, &replay.deleted)?;
    }
    for run in entry.runs.values_mut() {
        run.unlisted = run.dirty;
    }
    Ok(entry)
}

/// The former owner may have listed every state that it has had since the stored snapshot.
fn note_listings(entry: &mut Entry, record: &ChainRecord) {
    let Some(chain) = &entry.chain else { return };
    for delta in &record.runs {
        if let Some(run) = entry.runs.get_mut(&delta.run_id)
            && std::mem::take(&mut run.unlisted)
            && let Some(listing) = listing_of(&**chain, &delta.run_id)
        {
            run.may_be_listed(listing);
        }
    }
}

/// The same of a run that is deleted in the end. If its row is gone already, so is what the list showed; else it is
/// brought from there through its states once more, apart from its chain.
fn listings_of_deleted(
    key: &ChainKey,
    run_id: &str,
    rows: &[(String, RunRow)],
    records: &[(Position, ChainRecord)],
) -> Vec<Listing> {
    let head = ChainHead { current_run_id: run_id.to_owned(), ..ChainHead::default() };
    let mut entry = Entry { chain: Some(kinds::from_head(key, head)), ..Entry::default() };
    if let Some((_, row)) = rows.iter().find(|(id, _)| id == run_id)
        && let Err(error) = insert_run(&mut entry, key, run_id.to_owned(), row)
    {
        tracing::warn!(chain = ?key, run_id, %error, "the snapshot of a deleted run");
    }
    let none_deleted = std::collections::BTreeMap::new();
    for (position, record) in records {
        let deltas = record.runs.iter().filter(|delta| delta.run_id == run_id && !delta.deleted);
        let record = ChainRecord { head: None, runs: deltas.cloned().collect(), ..record.clone() };
        // Its first states are missing if its row is gone.
        if !record.runs.is_empty() && apply(&mut entry, *position, record, &none_deleted).is_err() {
            break;
        }
    }
    entry.runs.remove(run_id).map(|run| run.listed).unwrap_or_default()
}

fn apply(
    entry: &mut Entry,
    position: Position,
    mut record: ChainRecord,
    deleted: &std::collections::BTreeMap<String, Position>,
) -> Result<(), RecoverError> {
    // Against the stored rows, not what was applied since: records of one row are reflected all or none
    // (ShardLog::cut), and have the same position.
    let is_reflected = |stored: Option<Position>| stored.is_some_and(|stored| stored >= position);
    if is_reflected(entry.stored_head) {
        record.head = None;
    }
    entry.head_dirty = true;
    let mut fresh = Vec::with_capacity(record.runs.len());
    for delta in std::mem::take(&mut record.runs) {
        if deleted.contains_key(&delta.run_id) {
            continue;
        }
        match entry.runs.get_mut(&delta.run_id) {
            // Its events are in the store, too: they are written before the snapshot.
            Some(run) if is_reflected(run.stored_applied) => run.dirty = true,
            Some(_) | None => fresh.push(delta),
        }
    }
    record.runs = fresh;
    let Some(chain) = entry.chain.as_mut() else {
        return Ok(());
    };
    chain.apply(&record)?;
    entry.note(&record, Applied::At(position));
    note_listings(entry, &record);
    for run in entry.runs.values_mut() {
        run.wake_certain = false;
    }
    Ok(())
}
