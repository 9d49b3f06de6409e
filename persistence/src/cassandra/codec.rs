//! Rows as columns. Every column of a row under conditional writes is set, so that conditions never meet a null.

use std::fmt::Write;

use perdure_types::{Epoch, Position, Seq, SessionId, SlotCount};
use uuid::Uuid;

use crate::{Result, SessionRow, SessionState, ShardRow, Source, Split, StoreError};

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
    /// `epoch:session:from:until`, comma-separated by epoch; an open source ends with the colon. Of a shard that was split
    /// `;slots;epoch` follow, and of its lower half, while the upper one may be missing, that one's columns, with `;`
    /// between them. One row has one text, so that conditions may compare it.
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
        if let Some(split) = &row.split {
            let _ = write!(sources, ";{};{}", split.slots.get(), split.epoch.0);
            if let Some(row) = &split.sibling {
                let c = Self::encode(&ShardRow { split: None, ..(**row).clone() });
                let columns = format!("{};{};{};{}", c.owner, c.epoch, c.checkpoint_epoch, c.checkpoint_seq);
                let _ = write!(sources, ";{columns};{}", c.sources);
            }
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
        let (sources, split) = match self.sources.split_once(';') {
            Some((sources, text)) => {
                let corrupt = || StoreError::Corrupt(format!("split {text:?} of a shard is not understood"));
                (sources, Some(split(text)?.ok_or_else(corrupt)?))
            }
            None => (self.sources.as_str(), None),
        };
        let parts = sources.split(',').filter(|part| !part.is_empty());
        let sources = parts.map(|part| {
            source(part).ok_or_else(|| StoreError::Corrupt(format!("source {part:?} of a shard is not understood")))
        });
        Ok(ShardRow {
            owner: (!self.owner.is_nil()).then_some(SessionId(self.owner)),
            epoch: Epoch(self.epoch as u64),
            checkpoint: Position { epoch: Epoch(self.checkpoint_epoch as u64), seq: Seq(self.checkpoint_seq as u64) },
            sources: sources.collect::<Result<_>>()?,
            split,
        })
    }
}

fn split(text: &str) -> Result<Option<Split>> {
    let parts: Vec<&str> = text.split(';').collect();
    let number = |at: usize| parts.get(at).and_then(|part| part.parse::<u64>().ok());
    let slots = number(0).and_then(|slots| SlotCount::new(u32::try_from(slots).ok()?));
    let (Some(slots), Some(epoch)) = (slots, number(1).map(Epoch)) else { return Ok(None) };
    let half = Split { slots, epoch, sibling: None };
    if parts.len() == 2 {
        return Ok(Some(half));
    }
    let owner = parts.get(2).and_then(|part| Uuid::parse_str(part).ok());
    let signed = |at: usize| number(at).and_then(|number| i64::try_from(number).ok());
    let (Some(owner), Some(epoch), Some(checkpoint_epoch), Some(checkpoint_seq), [sources]) =
        (owner, signed(3), signed(4), signed(5), parts.get(6..).unwrap_or_default())
    else {
        return Ok(None);
    };
    let columns = ShardColumns { owner, epoch, checkpoint_epoch, checkpoint_seq, sources: (*sources).to_owned() };
    let sibling = ShardRow { split: Some(half.clone()), ..columns.decode()? };
    Ok(Some(Split { sibling: Some(Box::new(sibling)), ..half }))
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
