//! Ends other sessions: nothing of theirs is acknowledged after this, and where their log ends is decided (F1 to F3).

use std::collections::VecDeque;

use perdure_persistence::{Cas, LogRow, SessionRow, SessionState, Store, StoreError};
use perdure_types::{Seq, SessionId};

use crate::{
    log::{
        scan,
        session::{cas_session, persist},
    },
    telemetry,
};

/// Rows at the end of a log that may lack a quorum: no session has more in flight (A2).
const MAX_ROWS_IN_FLIGHT: usize = 64;

/// Seals a session, whatever state it is in. Returns its sealed row; `None` if there is no such session.
pub(crate) async fn fence(store: &dyn Store, id: SessionId) -> Result<Option<SessionRow>, StoreError> {
    fence_keeping(store, id, &mut Vec::new()).await
}

/// As [`fence`]; what was read of the log, from its base on, is kept: who fences is about to replay it.
pub(crate) async fn fence_keeping(
    store: &dyn Store,
    id: SessionId,
    kept: &mut Vec<LogRow>,
) -> Result<Option<SessionRow>, StoreError> {
    loop {
        let Some(row) = persist("read session", || store.read_session_serial(id)).await? else {
            return Ok(None);
        };
        match row.state {
            SessionState::Sealed(_) => return Ok(Some(row)),
            SessionState::Live => {
                tracing::info!(session = %id, "fencing a session that ended without a goodbye");
                // F1. Rejected: its base moved, or another fencer was faster; look again.
                let fenced = SessionRow { state: SessionState::Fenced, ..row.clone() };
                if cas_session(store, id, Some(row), fenced).await? == Cas::Applied {
                    telemetry::fenced_another();
                }
            }
            SessionState::Fenced => {
                // F1: a plain read that shows not-live, before the scan starts.
                let seen = persist("see session fenced", || store.read_session(id)).await?;
                if seen.is_some_and(|row| row.state == SessionState::Live) {
                    continue;
                }
                kept.clear();
                let end = find_end(store, id, &row, kept).await?;
                // F3. Whoever proposes first decides; the loop reads what was decided.
                let sealed = SessionRow { state: SessionState::Sealed(end), ..row.clone() };
                if cas_session(store, id, Some(row), sealed.clone()).await? == Cas::Applied {
                    return Ok(Some(sealed));
                }
            }
        }
    }
}

/// F2: the end of the contiguous prefix; rows that were perhaps never acknowledged are inserted again.
async fn find_end(
    store: &dyn Store,
    id: SessionId,
    row: &SessionRow,
    kept: &mut Vec<LogRow>,
) -> Result<Seq, StoreError> {
    let start = scan::Start { session: id, segment: row.base_segment, seq: row.base };
    let mut acknowledged = Seq::ZERO;
    let mut last_rows: VecDeque<LogRow> = VecDeque::new();
    let end = scan::contiguous(store, start, None, |row| {
        acknowledged = acknowledged.max(row.acknowledged);
        kept.push(row.clone());
        last_rows.push_back(row);
        while last_rows.len() > MAX_ROWS_IN_FLIGHT {
            last_rows.pop_front();
        }
        Ok(())
    })
    .await?;
    for row in last_rows.into_iter().filter(|row| row.seq > acknowledged) {
        persist("insert log row again", || store.append(id, row.clone())).await?;
    }
    Ok(end)
}
