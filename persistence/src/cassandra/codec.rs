//! Rows as columns. Every column of a row under conditional writes is set, so that conditions never meet a null.

use std::fmt::Write;

use perdure_types::{Epoch, Position, Seq, SessionId};
use uuid::Uuid;

use crate::{Result, SessionRow, SessionState, ShardRow, Source, StoreError};

const LIVE: i8 = 0;
const FENCED: i8 = 1;
const SEALED: i8 = 2;

/// A row of `sessions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionColumns {
    pub state: i8,
    pub sealed_at: i64,
    pub base: i64,
    pub base_segment: i32,
}

impl SessionColumns {
    pub fn encode(row: &SessionRow) -> Self {
        let (state, sealed_at) = match row.state {
            SessionState::Live => (LIVE, 0),
            SessionState::Fenced => (FENCED, 0),
            SessionState::Sealed(at) => (SEALED, at.0 as i64),
        };
        Self { state, sealed_at, base: row.base.0 as i64, base_segment: row.base_segment as i32 }
    }

    pub fn decode(self) -> Result<SessionRow> {
        let state = match self.state {
            LIVE => SessionState::Live,
            FENCED => SessionState::Fenced,
            SEALED => SessionState::Sealed(Seq(self.sealed_at as u64)),
            other => return Err(StoreError::Corrupt(format!("a session is in state {other}"))),
        };
        Ok(SessionRow { state, base: Seq(self.base as u64), base_segment: self.base_segment as u32 })
    }
}

/// A row of `shards`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardColumns {
    /// The nil id stands for nobody.
    pub owner: Uuid,
    pub epoch: i64,
    pub checkpoint_epoch: i64,
    pub checkpoint_seq: i64,
    /// `epoch:session:from:until`, comma-separated by epoch; an open source ends with the colon. One row has one text, so
    /// that conditions may compare it.
    pub sources: String,
}

impl ShardColumns {
    pub fn encode(row: &ShardRow) -> Self {
        let mut sources = String::new();
        for (epoch, source) in &row.sources {
            let separator = if sources.is_empty() { "" } else { "," };
            let until = source.until.map(|seq| seq.0.to_string()).unwrap_or_default();
            let _ = write!(sources, "{separator}{}:{}:{}:{until}", epoch.0, source.session, source.from.0);
        }
        Self {
            owner: row.owner.map_or(Uuid::nil(), |session| session.0),
            epoch: row.epoch.0 as i64,
            checkpoint_epoch: row.checkpoint.epoch.0 as i64,
            checkpoint_seq: row.checkpoint.seq.0 as i64,
            sources,
        }
    }

    pub fn decode(self) -> Result<ShardRow> {
        let parts = self.sources.split(',').filter(|part| !part.is_empty());
        let sources = parts.map(|part| {
            source(part).ok_or_else(|| StoreError::Corrupt(format!("source {part:?} of a shard is not understood")))
        });
        Ok(ShardRow {
            owner: (!self.owner.is_nil()).then_some(SessionId(self.owner)),
            epoch: Epoch(self.epoch as u64),
            checkpoint: Position { epoch: Epoch(self.checkpoint_epoch as u64), seq: Seq(self.checkpoint_seq as u64) },
            sources: sources.collect::<Result<_>>()?,
        })
    }
}

fn source(text: &str) -> Option<(Epoch, Source)> {
    let mut parts = text.split(':');
    let epoch = Epoch(parts.next()?.parse().ok()?);
    let session = SessionId::parse(parts.next()?)?;
    let from = Seq(parts.next()?.parse().ok()?);
    let until = match parts.next()? {
        "" => None,
        seq => Some(Seq(seq.parse().ok()?)),
    };
    parts.next().is_none().then_some((epoch, Source { session, from, until }))
}

/// Guards a log row against damage on any way there is: of the number, the watermark and the content.
pub(super) fn log_checksum(seq: Seq, acknowledged: Seq, batch: &[u8]) -> i32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.0.to_le_bytes());
    hasher.update(&acknowledged.0.to_le_bytes());
    hasher.update(batch);
    hasher.finalize() as i32
}
