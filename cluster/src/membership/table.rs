//! The `members` table of the store: where nodes find each other, and a second sign of life.
//!
//! A node writes its row every [`Config::table_interval`](super::MembershipConfig) and reads the others'. Rows vanish by
//! themselves. Gossip decides who is alive; the table tells whom to gossip with, and whether those who cannot be heard live.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use perdure_proto::Error;
use perdure_types::SessionId;
use tokio::time::Instant;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The node's id.
    pub node: String,
    /// The node's name: the same after a restart.
    pub name: String,
    /// `ip:port` of gossip and of node-to-node calls.
    pub address: String,
    pub generation: u64,
    /// Rises with each write, so that a reader sees a sign of life without comparing clocks.
    pub beat: u64,
    /// Under which the node commits, if it had one by then.
    pub session: Option<SessionId>,
}

/// Where the members are kept; implemented over the store by the server's wiring.
#[async_trait]
pub trait MemberTable: Send + Sync + 'static {
    /// Writes a row that vanishes after `ttl`.
    async fn put(&self, row: MemberRow, ttl: Duration) -> Result<(), Error>;
    async fn list(&self) -> Result<Vec<MemberRow>, Error>;
    async fn delete(&self, node: &str) -> Result<(), Error>;
}

/// Rows of nodes that were stopped without a goodbye go away by themselves.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// A row that has not changed for so many intervals says nothing any more.
pub(crate) const STALE_INTERVALS: u32 = 3;

/// A row that has been seen, and when it changed last.
struct Seen {
    beat: u64,
    changed: Instant,
    /// It has changed while this node looked: its node lives, or did a moment ago.
    lives: bool,
    row: MemberRow,
}

/// What this node reads in the table.
#[derive(Default)]
pub(crate) struct Rows {
    seen: BTreeMap<String, Seen>,
}

/// Another node as its row tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub name: String,
    pub generation: u64,
    pub address: SocketAddr,
    pub session: Option<SessionId>,
    /// Its row changes.
    pub fresh: bool,
}

impl Rows {
    /// Takes in what was read; `stale`: after so long without a change a row's node may be dead.
    pub(crate) fn read(&mut self, now: Instant, rows: Vec<MemberRow>, me: &str, stale: Duration) -> Vec<Listed> {
        let mut seen = BTreeMap::new();
        for row in rows.into_iter().filter(|row| row.node != me) {
            let before = self.seen.remove(&row.node);
            let entry = match before {
                Some(before) if before.beat == row.beat => before,
                Some(_) => Seen { beat: row.beat, changed: now, lives: true, row },
                None => Seen { beat: row.beat, changed: now, lives: false, row },
            };
            seen.insert(entry.row.node.clone(), entry);
        }
        self.seen = seen;
        let listed = |seen: &Seen| {
            Some(Listed {
                name: seen.row.name.clone(),
                generation: seen.row.generation,
                address: seen.row.address.parse().ok()?,
                session: seen.row.session,
                fresh: seen.lives && now < seen.changed + stale,
            })
        };
        self.seen.values().filter_map(listed).collect()
    }
}

/// The number of a new incarnation: higher than that of every earlier one of the same name, even if the clock was set back.
pub(crate) fn next_generation(now_ms: u64, name: &str, rows: &[MemberRow]) -> u64 {
    let earlier = rows.iter().filter(|row| row.name == name).map(|row| row.generation + 1).max();
    now_ms.max(earlier.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, generation: u64, beat: u64) -> MemberRow {
        let node = format!("{name}@{generation}");
        let address = "127.0.0.1:1".to_owned();
        MemberRow { node, name: name.to_owned(), address, generation, beat, session: None }
    }

    #[test]
    fn a_generation_never_goes_back() {
        assert_eq!(next_generation(5, "a", &[]), 5);
        assert_eq!(next_generation(5, "a", &[row("a", 9, 1), row("a", 7, 1), row("b", 20, 1)]), 10);
    }

    #[test]
    fn a_row_is_fresh_while_it_changes() {
        let (mut rows, stale) = (Rows::default(), Duration::from_secs(5));
        let mut at = Instant::now();
        let mut fresh = |beat| {
            at += Duration::from_secs(2);
            rows.read(at, vec![row("me", 1, beat), row("other", 1, beat)], "me@1", stale)
                .into_iter()
                .map(|listed| listed.fresh)
                .collect::<Vec<_>>()
        };
        // The first sight of a row says nothing: it may be left over.
        assert_eq!(fresh(1), [false]);
        assert_eq!(fresh(2), [true]);
        assert_eq!(fresh(2), [true]);
        assert_eq!(fresh(2), [true]);
        assert_eq!(fresh(2), [false]);
        assert_eq!(fresh(3), [true]);
    }
}
