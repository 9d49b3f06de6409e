//! Reads a session's log in order.

use perdure_persistence::{LogRow, Store, StoreError};
use perdure_types::{Seq, SessionId};

use super::session::persist;

/// Bytes of one page: well below what a store may refuse to move at once (F2).
const PAGE_BYTES: usize = 4 << 20;

/// Where to read from: the base of a session row, or a later row and the base's segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub session: SessionId,
    pub segment: u32,
    pub seq: Seq,
}

/// Gives each row of the contiguous prefix from `start` on to `visit`, up to and including `until`, and returns the last
/// one's number (or the one before `start`). The prefix ends at the first missing row.
pub(crate) async fn contiguous(
    store: &dyn Store,
    start: Start,
    until: Option<Seq>,
    mut visit: impl FnMut(LogRow) -> Result<(), StoreError>,
) -> Result<Seq, StoreError> {
    let mut next = start.seq;
    let mut segment = start.segment;
    // A row is in the segment of the row before or in the one after it. The base may be the first row of the segment
    // after the base segment, so one empty segment is passed over.
    let mut misses = 0;
    let mut entered = false;
    while misses < 2 && until.is_none_or(|until| next <= until) {
        let rows = persist("read log", || store.read_log(start.session, segment, next, PAGE_BYTES)).await?;
        let mut found = false;
        for row in rows {
            if row.seq != next || until.is_some_and(|until| next > until) {
                break;
            }
            found = true;
            next = next.next();
            visit(row)?;
        }
        if found {
            (misses, entered) = (0, true);
        } else {
            // A start beyond the base may be some segments on.
            misses += usize::from(entered || is_empty(store, start.session, segment).await?);
            segment += 1;
        }
    }
    Ok(Seq(next.0 - 1))
}

async fn is_empty(store: &dyn Store, session: SessionId, segment: u32) -> Result<bool, StoreError> {
    let rows = persist("read log", || store.read_log(session, segment, Seq::ZERO, 1)).await?;
    Ok(rows.is_empty())
}
