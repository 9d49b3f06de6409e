//! One replica: cells with timestamps, merged as Cassandra merges them. Nothing here knows of faults.
//!
//! Invariant: [`Replica::apply`] is idempotent, and commutes for mutations of different stamps: so replicas that got the
//! same mutations in any order, any number of times, are equal.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Bound,
    sync::Arc,
};

use perdure_types::{ChainKey, Seq, SessionId, ShardId, SlotCount, Timestamp};

use crate::{
    ClusterSettings, HeadRow, HistoryRow, Listing, LogRow, NamespaceRow, PlainRows, RunRow, SessionRow, ShardRow,
    StampedWrite, TableWrite, VisibilityRow, Wakeup,
};

/// A value, or the tombstone of one (`None`), with its write timestamp.
#[derive(Debug, Clone)]
pub(super) struct Cell<T> {
    pub stamp: i64,
    pub value: Option<T>,
}

impl<T> Cell<T> {
    fn live(stamp: i64, value: T) -> Self {
        Self { stamp, value: Some(value) }
    }

    fn tombstone(stamp: i64) -> Self {
        Self { stamp, value: None }
    }

    /// The newer stamp wins; between equal ones a tombstone does, else the last to arrive. (Cassandra takes the larger
    /// bytes. Either may win: two values with one stamp differ only in what nobody was promised.)
    fn loses_to(&self, other: &Self) -> bool {
        self.stamp < other.stamp || (self.stamp == other.stamp && (self.value.is_some() || other.value.is_none()))
    }
}

/// A row that only conditional writes touch (G4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LwtKey {
    Settings,
    Goal,
    Namespace(String),
    Session(SessionId),
    Shard(ShardId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LwtRow {
    Settings(ClusterSettings),
    Goal(SlotCount),
    Namespace(NamespaceRow),
    Session(SessionRow),
    Shard(ShardRow),
}

/// The unit that travels to a replica.
#[derive(Debug, Clone)]
pub(super) enum Mutation {
    Lwt(LwtKey, Cell<LwtRow>),
    LogRow(SessionId, LogRow),
    DeleteSegment(SessionId, u32),
    Head(ChainKey, Cell<HeadRow>),
    Run(ChainKey, Arc<str>, Cell<RunRow>),
    History(ChainKey, Arc<str>, i64, HistoryRow),
    DeleteHistory(ChainKey, Arc<str>, i64),
    Wakeup(ShardId, Wakeup, Cell<()>),
    Visibility(ListKey, Cell<VisibilityRow>),
}

/// A row of the list, by its place as in Cassandra: whoever moves a run has to take it from where it was.
pub(super) type ListKey = (ChainKey, Arc<str>, (bool, Timestamp));

impl Mutation {
    pub fn of_table_write(StampedWrite { stamp, write }: StampedWrite) -> Vec<Self> {
        let stamp = stamp.stamp();
        match write {
            TableWrite::PutHead { chain, row } => vec![Self::Head(chain, Cell::live(stamp, row))],
            TableWrite::DeleteHead { chain } => vec![Self::Head(chain, Cell::tombstone(stamp))],
            TableWrite::PutRun { chain, run_id, row } => vec![Self::Run(chain, run_id, Cell::live(stamp, row))],
            TableWrite::PutHistory { chain, run_id, row } => vec![Self::History(chain, run_id, stamp, row)],
            TableWrite::DeleteRun { chain, run_id } => vec![
                Self::Run(chain.clone(), run_id.clone(), Cell::tombstone(stamp)),
                Self::DeleteHistory(chain, run_id, stamp),
            ],
            TableWrite::PutWakeup { shard, wakeup } => vec![Self::Wakeup(shard, wakeup, Cell::live(stamp, ()))],
            TableWrite::DeleteWakeup { shard, wakeup } => vec![Self::Wakeup(shard, wakeup, Cell::tombstone(stamp))],
            TableWrite::PutVisibility { chain, run_id, row, before } => {
                let place = Listing::of(&row).place();
                let gone = before.iter().map(Listing::place).filter(|old| *old != place);
                let gone = gone.map(|old| ((chain.clone(), run_id.clone(), old), Cell::tombstone(stamp)));
                let mut cells: Vec<_> = gone.collect();
                cells.push(((chain, run_id, place), Cell::live(stamp, *row)));
                cells.into_iter().map(|(key, cell)| Self::Visibility(key, cell)).collect()
            }
            TableWrite::DeleteVisibility { chain, run_id, before } => {
                let key = |old: &Listing| (chain.clone(), run_id.clone(), old.place());
                before.iter().map(|old| Self::Visibility(key(old), Cell::tombstone(stamp))).collect()
            }
        }
    }
}

/// What one read looks at.
#[derive(Debug, Clone)]
pub(super) enum Scope {
    Lwt(LwtKey),
    Namespaces,
    Sessions,
    Shards,
    Segment(SessionId, u32),
    Head(ChainKey),
    Run(ChainKey, Arc<str>),
    History(ChainKey, Arc<str>),
    Wakeups(ShardId),
    Visibility(Arc<str>),
}

/// Log rows carry timestamp 1, the deletion of their segment timestamp 2: once deleted, late inserts stay invisible (M3).
#[derive(Debug, Clone, Default)]
struct Segment {
    deleted: bool,
    rows: BTreeMap<Seq, LogRow>,
}

#[derive(Debug, Clone)]
struct History {
    deleted: i64,
    rows: BTreeMap<i64, (i64, HistoryRow)>,
}

impl Default for History {
    fn default() -> Self {
        Self { deleted: i64::MIN, rows: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Replica {
    lwt: BTreeMap<LwtKey, Cell<LwtRow>>,
    log: BTreeMap<(SessionId, u32), Segment>,
    heads: BTreeMap<ChainKey, Cell<HeadRow>>,
    runs: BTreeMap<(ChainKey, Arc<str>), Cell<RunRow>>,
    history: BTreeMap<(ChainKey, Arc<str>), History>,
    wakeups: BTreeMap<ShardId, BTreeMap<Wakeup, Cell<()>>>,
    visibility: BTreeMap<ListKey, Cell<VisibilityRow>>,
}

fn merge<K: Ord, T>(table: &mut BTreeMap<K, Cell<T>>, key: K, cell: Cell<T>) {
    match table.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(cell);
        }
        Entry::Occupied(mut entry) => {
            if entry.get().loses_to(&cell) {
                entry.insert(cell);
            }
        }
    }
}

impl Replica {
    pub fn apply(&mut self, mutation: Mutation) {
        match mutation {
            Mutation::Lwt(key, cell) => merge(&mut self.lwt, key, cell),
            Mutation::LogRow(session, row) => {
                let segment = self.log.entry((session, row.segment)).or_default();
                if !segment.deleted {
                    segment.rows.insert(row.seq, row);
                }
            }
            Mutation::DeleteSegment(session, segment) => {
                self.log.insert((session, segment), Segment { deleted: true, rows: BTreeMap::new() });
            }
            Mutation::Head(chain, cell) => merge(&mut self.heads, chain, cell),
            Mutation::Run(chain, run_id, cell) => merge(&mut self.runs, (chain, run_id), cell),
            Mutation::History(chain, run_id, stamp, row) => {
                let history = self.history.entry((chain, run_id)).or_default();
                let newer = history.rows.get(&row.first_event_id).is_none_or(|(old, _)| *old <= stamp);
                if newer && stamp > history.deleted {
                    history.rows.insert(row.first_event_id, (stamp, row));
                }
            }
            Mutation::DeleteHistory(chain, run_id, stamp) => {
                let history = self.history.entry((chain, run_id)).or_default();
                history.deleted = history.deleted.max(stamp);
                history.rows.retain(|_, (written, _)| *written > stamp);
            }
            Mutation::Wakeup(shard, wakeup, cell) => merge(self.wakeups.entry(shard).or_default(), wakeup, cell),
            Mutation::Visibility(key, cell) => merge(&mut self.visibility, key, cell),
        }
    }

    /// Everything in `scope`, tombstones too, as mutations that bring another replica up to date.
    pub fn extract(&self, scope: &Scope) -> Vec<Mutation> {
        match scope {
            Scope::Lwt(key) => self.extract_lwt(|candidate| candidate == key),
            Scope::Namespaces => self.extract_lwt(|key| matches!(key, LwtKey::Namespace(_))),
            Scope::Sessions => self.extract_lwt(|key| matches!(key, LwtKey::Session(_))),
            Scope::Shards => self.extract_lwt(|key| matches!(key, LwtKey::Shard(_))),
            Scope::Segment(session, number) => match self.log.get(&(*session, *number)) {
                Some(segment) if segment.deleted => vec![Mutation::DeleteSegment(*session, *number)],
                Some(segment) => segment.rows.values().map(|row| Mutation::LogRow(*session, row.clone())).collect(),
                None => Vec::new(),
            },
            Scope::Head(chain) => {
                self.heads.get(chain).map(|cell| Mutation::Head(chain.clone(), cell.clone())).into_iter().collect()
            }
            Scope::Run(chain, run_id) => {
                let key = (chain.clone(), run_id.clone());
                let run = self.runs.get(&key).map(|cell| Mutation::Run(chain.clone(), run_id.clone(), cell.clone()));
                run.into_iter().collect()
            }
            Scope::History(chain, run_id) => {
                let Some(history) = self.history.get(&(chain.clone(), run_id.clone())) else {
                    return Vec::new();
                };
                let rows = history
                    .rows
                    .values()
                    .map(|(stamp, row)| Mutation::History(chain.clone(), run_id.clone(), *stamp, row.clone()));
                let deletion = Mutation::DeleteHistory(chain.clone(), run_id.clone(), history.deleted);
                std::iter::once(deletion).chain(rows).collect()
            }
            Scope::Wakeups(shard) => {
                let rows = self.wakeups.get(shard).into_iter().flatten();
                rows.map(|(wakeup, cell)| Mutation::Wakeup(*shard, wakeup.clone(), cell.clone())).collect()
            }
            Scope::Visibility(list_id) => {
                let rows = self.visibility.iter().filter(|((chain, ..), _)| chain.list_id() == *list_id);
                rows.map(|(key, cell)| Mutation::Visibility(key.clone(), cell.clone())).collect()
            }
        }
    }

    fn extract_lwt(&self, wanted: impl Fn(&LwtKey) -> bool) -> Vec<Mutation> {
        let rows = self.lwt.iter().filter(|(key, _)| wanted(key));
        rows.map(|(key, cell)| Mutation::Lwt(key.clone(), cell.clone())).collect()
    }

    pub fn lwt(&self, key: &LwtKey) -> Option<LwtRow> {
        self.lwt.get(key)?.value.clone()
    }

    pub fn lwt_rows(&self) -> impl Iterator<Item = (&LwtKey, &LwtRow)> {
        self.lwt.iter().filter_map(|(key, cell)| Some((key, cell.value.as_ref()?)))
    }

    pub fn log_row(&self, session: SessionId, segment: u32, seq: Seq) -> Option<&LogRow> {
        self.log.get(&(session, segment))?.rows.get(&seq)
    }

    pub fn log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Vec<LogRow> {
        let Some(segment) = self.log.get(&(session, segment)) else {
            return Vec::new();
        };
        let rows = segment.rows.range(from..).map(|(_, row)| row.clone());
        page(rows, max_bytes, |row| row.batch.len())
    }

    pub fn head(&self, chain: &ChainKey) -> Option<HeadRow> {
        self.heads.get(chain)?.value.clone()
    }

    pub fn run(&self, chain: &ChainKey, run_id: &Arc<str>) -> Option<RunRow> {
        self.runs.get(&(chain.clone(), run_id.clone()))?.value.clone()
    }

    pub fn history(
        &self,
        key: &(ChainKey, Arc<str>),
        from: i64,
        until: i64,
        max_bytes: usize,
        reverse: bool,
    ) -> Vec<HistoryRow> {
        let Some(history) = self.history.get(key) else {
            return Vec::new();
        };
        let first = history.rows.range(..=from).next_back().map_or(from, |(first, _)| *first);
        if first > until {
            return Vec::new();
        }
        let overlap =
            history.rows.range(first..=until).map(|(_, (_, row))| row).filter(|row| row.last_event_id >= from).cloned();
        let size = |row: &HistoryRow| row.events.len();
        if reverse { page(overlap.rev(), max_bytes, size) } else { page(overlap, max_bytes, size) }
    }

    pub fn wakeups(&self, shard: ShardId, after: Option<&Wakeup>, until: Timestamp, limit: usize) -> Vec<Wakeup> {
        let Some(wakeups) = self.wakeups.get(&shard) else {
            return Vec::new();
        };
        let later = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let due = wakeups.range::<Wakeup, _>(later).take_while(|(wakeup, _)| wakeup.at <= until);
        due.filter(|(_, cell)| cell.value.is_some()).map(|(wakeup, _)| wakeup.clone()).take(limit).collect()
    }
}

impl Replica {
    pub fn visibility(&self, list_id: &str) -> PlainRows {
        let mut rows = PlainRows::default();
        for ((chain, run_id, _), cell) in &self.visibility {
            if let Some(row) = cell.value.as_ref().filter(|_| *chain.list_id() == *list_id) {
                rows.add(chain, run_id, row.clone());
            }
        }
        rows
    }
}

/// Rows until they weigh about `max_bytes`, at least one.
fn page<T>(rows: impl Iterator<Item = T>, max_bytes: usize, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut total = 0;
    let mut taken = Vec::new();
    for row in rows {
        total += size(&row);
        if !taken.is_empty() && total > max_bytes {
            break;
        }
        taken.push(row);
    }
    taken
}
