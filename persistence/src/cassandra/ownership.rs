//! `sessions` and `shards`: conditional writes only (G4), and reads that find what those decided.

use perdure_types::{SessionId, ShardId};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::{
    CassandraStore,
    codec::{SessionColumns, ShardColumns},
    cql::{Columns, Decision},
    errors,
    telemetry::Request,
};
use crate::{Cas, Result, SessionRow, ShardRow};

type SessionTuple = (Uuid, Option<i8>, Option<i64>, Option<i64>, Option<i32>);
type ShardTuple = (i32, Option<Uuid>, Option<i64>, Option<i64>, Option<i64>, Option<String>);

/// A decision as the trait says it.
fn cas<T>(decision: Decision, convert: impl FnOnce(&Columns) -> Result<T>) -> Result<Cas<T>> {
    match decision {
        Decision::Applied => Ok(Cas::Applied),
        Decision::Rejected(columns) => Ok(Cas::Rejected(columns.as_ref().map(convert).transpose()?)),
    }
}

fn session_of((id, state, sealed_at, base, base_segment): SessionTuple) -> Result<Option<(SessionId, SessionRow)>> {
    // A row of which only the key is left was deleted.
    let (Some(state), Some(sealed_at), Some(base), Some(base_segment)) = (state, sealed_at, base, base_segment) else {
        return Ok(None);
    };
    Ok(Some((SessionId(id), SessionColumns { state, sealed_at, base, base_segment }.decode()?)))
}

fn session_of_columns(columns: &Columns) -> Result<SessionRow> {
    SessionColumns {
        state: columns.tinyint("state")?,
        sealed_at: columns.bigint("sealed_at")?,
        base: columns.bigint("base")?,
        base_segment: columns.int("base_segment")?,
    }
    .decode()
}

fn shard_of(
    (id, owner, epoch, checkpoint_epoch, checkpoint_seq, sources): ShardTuple,
) -> Result<Option<(ShardId, ShardRow)>> {
    let (Some(owner), Some(epoch), Some(checkpoint_epoch), Some(checkpoint_seq), Some(sources)) =
        (owner, epoch, checkpoint_epoch, checkpoint_seq, sources)
    else {
        return Ok(None);
    };
    let row = ShardColumns { owner, epoch, checkpoint_epoch, checkpoint_seq, sources }.decode()?;
    Ok(Some((ShardId(id as u32), row)))
}

fn shard_of_columns(columns: &Columns) -> Result<ShardRow> {
    ShardColumns {
        owner: columns.uuid("owner")?,
        epoch: columns.bigint("epoch")?,
        checkpoint_epoch: columns.bigint("checkpoint_epoch")?,
        checkpoint_seq: columns.bigint("checkpoint_seq")?,
        sources: columns.text("sources")?.to_owned(),
    }
    .decode()
}

impl CassandraStore {
    /// The few rows of all sessions: one a node, and those of the dead until they are cleaned up.
    pub(super) async fn sessions(&self) -> Result<Vec<(SessionId, SessionRow)>> {
        let rows = self.cql.read_all(Request::List, &self.statements.list_sessions, (), session_of).await?;
        Ok(rows.into_iter().flatten().collect())
    }

    async fn session(
        &self,
        request: Request,
        statement: &PreparedStatement,
        id: SessionId,
    ) -> Result<Option<SessionRow>> {
        let rows = self.cql.read(request, statement, (id.0,)).await?;
        let row = rows.maybe_first_row::<SessionTuple>().map_err(|e| errors::corrupt("session row", e))?;
        Ok(row.map(session_of).transpose()?.flatten().map(|(_, row)| row))
    }

    /// A3: a plain QUORUM read; it meets every decided change, since LWTs commit at QUORUM.
    pub(super) async fn fence_read(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.session(Request::FenceRead, &self.statements.read_session, id).await
    }

    pub(super) async fn session_serial(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.session(Request::SerialRead, &self.statements.read_session_serial, id).await
    }

    pub(super) async fn session_cas(
        &self,
        id: SessionId,
        expected: Option<&SessionRow>,
        new: Option<&SessionRow>,
    ) -> Result<Cas<SessionRow>> {
        let statements = &self.statements;
        let decision = match (expected.map(SessionColumns::encode), new.map(SessionColumns::encode)) {
            (None, Some(n)) => {
                let values = (id.0, n.state, n.sealed_at, n.base, n.base_segment);
                self.cql.decide(&statements.create_session, values).await?
            }
            (Some(e), Some(n)) => {
                let new = (n.state, n.sealed_at, n.base, n.base_segment);
                let values = (new.0, new.1, new.2, new.3, id.0, e.state, e.sealed_at, e.base, e.base_segment);
                self.cql.decide(&statements.update_session, values).await?
            }
            (Some(e), None) => {
                let values = (id.0, e.state, e.sealed_at, e.base, e.base_segment);
                self.cql.decide(&statements.delete_session, values).await?
            }
            (None, None) => return Ok(Cas::Rejected(self.session_serial(id).await?)),
        };
        cas(decision, session_of_columns)
    }

    pub(super) async fn shards(&self) -> Result<Vec<(ShardId, ShardRow)>> {
        let rows = self.cql.read_all(Request::List, &self.statements.list_shards, (), shard_of).await?;
        Ok(rows.into_iter().flatten().collect())
    }

    pub(super) async fn shard_serial(&self, id: ShardId) -> Result<Option<ShardRow>> {
        let rows = self.cql.read(Request::SerialRead, &self.statements.read_shard, (id.0 as i32,)).await?;
        let row = rows.maybe_first_row::<ShardTuple>().map_err(|e| errors::corrupt("shard row", e))?;
        Ok(row.map(shard_of).transpose()?.flatten().map(|(_, row)| row))
    }

    pub(super) async fn shard_cas(
        &self,
        id: ShardId,
        expected: Option<&ShardRow>,
        new: &ShardRow,
    ) -> Result<Cas<ShardRow>> {
        let n = ShardColumns::encode(new);
        let id = id.0 as i32;
        let decision = match expected.map(ShardColumns::encode) {
            None => {
                let values = (id, n.owner, n.epoch, n.checkpoint_epoch, n.checkpoint_seq, n.sources);
                self.cql.decide(&self.statements.create_shard, values).await?
            }
            Some(e) => {
                let (e_checkpoint, n_checkpoint) =
                    ((e.checkpoint_epoch, e.checkpoint_seq), (n.checkpoint_epoch, n.checkpoint_seq));
                let values = (
                    n.owner,
                    n.epoch,
                    n_checkpoint.0,
                    n_checkpoint.1,
                    n.sources,
                    id,
                    e.owner,
                    e.epoch,
                    e_checkpoint.0,
                    e_checkpoint.1,
                    e.sources,
                );
                self.cql.decide(&self.statements.update_shard, values).await?
            }
        };
        cas(decision, shard_of_columns)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use perdure_types::{Epoch, Position, Seq, SlotCount};

    use super::*;
    use crate::{SessionState, Source, Split};

    #[test]
    fn rows_survive_their_columns() {
        for state in
            [SessionState::Live, SessionState::Fenced, SessionState::Sealed(Seq(0)), SessionState::Sealed(Seq(7))]
        {
            let row = SessionRow { state, base: Seq(3), base_segment: u32::MAX };
            assert_eq!(SessionColumns::encode(&row).decode().unwrap(), row);
        }
        let source = |id, from, until| Source { session: SessionId(Uuid::from_u128(id)), from: Seq(from), until };
        let mut row = ShardRow::default();
        assert_eq!(ShardColumns::encode(&row).decode().unwrap(), row);
        row = ShardRow {
            owner: Some(SessionId(Uuid::from_u128(u128::MAX))),
            epoch: Epoch(9),
            checkpoint: Position { epoch: Epoch(8), seq: Seq(1 << 39) },
            sources: BTreeMap::from([(Epoch(8), source(1, 5, Some(Seq(0)))), (Epoch(9), source(2, 1, None))]),
            split: None,
        };
        assert_eq!(ShardColumns::encode(&row).decode().unwrap(), row);
        let half = Split { slots: SlotCount::new(128).unwrap(), epoch: Epoch(7), sibling: None };
        let sibling = ShardRow { epoch: Epoch(8), split: Some(half.clone()), ..row.clone() };
        for sibling in [
            None,
            Some(Box::new(sibling)),
            Some(Box::new(ShardRow { split: Some(half.clone()), ..ShardRow::default() })),
        ] {
            row.split = Some(Split { sibling, ..half.clone() });
            assert_eq!(ShardColumns::encode(&row).decode().unwrap(), row);
        }
    }

    #[test]
    fn damaged_columns_are_corrupt() {
        assert!(SessionColumns { state: 3, sealed_at: 0, base: 0, base_segment: 0 }.decode().is_err());
        for sources in ["1", "1:x:1:", "a:00000000-0000-0000-0000-000000000001:1:", ";3;1", ";128", ";128;1;x"] {
            let mut columns = ShardColumns::encode(&ShardRow::default());
            columns.sources = sources.into();
            assert!(columns.decode().is_err(), "{sources}");
        }
    }
}
