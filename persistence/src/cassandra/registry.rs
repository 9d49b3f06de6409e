//! Settings, namespaces and members.

use std::time::Duration;

use bytes::Bytes;
use perdure_types::{SessionId, SlotCount};
use scylla::value::MaybeUnset;
use uuid::Uuid;

use super::{
    CassandraStore,
    cql::{Columns, Decision},
    errors,
    telemetry::Request,
};
use crate::{Cas, ClusterSettings, MemberRow, NamespaceRow, Result, StoreError};

type NamespaceTuple = (String, Option<String>, Option<i64>, Option<Bytes>);

type MemberTuple = (String, Option<String>, Option<String>, Option<i64>, Option<i64>, Option<Uuid>);

/// Rows that are about to expire may lack columns.
fn member((node, name, address, generation, beat, session): MemberTuple) -> Option<MemberRow> {
    let (generation, beat) = (generation? as u64, beat? as u64);
    Some(MemberRow { node, name: name?, address: address?, generation, beat, session: session.map(SessionId) })
}

fn namespace((name, id, version, record): NamespaceTuple) -> Option<NamespaceRow> {
    let record = Bytes::copy_from_slice(&record?);
    Some(NamespaceRow { id: id?, name, record, version: version? as u64 })
}

fn namespace_of(columns: &Columns) -> Result<NamespaceRow> {
    Ok(NamespaceRow {
        id: columns.text("id")?.to_owned(),
        name: columns.text("name")?.to_owned(),
        record: Bytes::copy_from_slice(columns.blob("record")?),
        version: columns.bigint("version")? as u64,
    })
}

fn slot_count(slots: i32) -> Result<SlotCount> {
    SlotCount::new(slots as u32).ok_or_else(|| StoreError::Corrupt(format!("the cluster has {slots} slots")))
}

impl CassandraStore {
    pub(super) async fn goal(&self) -> Result<Option<SlotCount>> {
        let rows = self.cql.read(Request::List, &self.statements.read_goal, ()).await?;
        let row = rows.maybe_first_row::<(Option<i32>,)>().map_err(|e| errors::corrupt("goal", e))?;
        row.and_then(|(slots,)| slots).map(slot_count).transpose()
    }

    pub(super) async fn goal_cas(&self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>> {
        let new = new.get() as i32;
        let decision = match expected {
            None => self.cql.decide(&self.statements.create_goal, (new,)).await?,
            Some(expected) => self.cql.decide(&self.statements.move_goal, (new, expected.get() as i32)).await?,
        };
        match decision {
            Decision::Applied => Ok(Cas::Applied),
            Decision::Rejected(row) => {
                Ok(Cas::Rejected(row.map(|row| row.int("slots").and_then(slot_count)).transpose()?))
            }
        }
    }

    pub(super) async fn settle_settings(&self, proposal: ClusterSettings) -> Result<ClusterSettings> {
        let values = (&proposal.cluster_id, proposal.slots.get() as i32, proposal.schema_version as i32);
        match self.cql.decide(&self.statements.create_settings, values).await? {
            Decision::Applied => Ok(proposal),
            Decision::Rejected(None) => Err(StoreError::Unavailable("settings were there and are gone".into())),
            Decision::Rejected(Some(row)) => {
                let slots = slot_count(row.int("slots")?)?;
                let schema_version = row.int("schema_version")? as u32;
                Ok(ClusterSettings { cluster_id: row.text("cluster_id")?.to_owned(), slots, schema_version })
            }
        }
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<NamespaceRow>> {
        let rows = self
            .cql
            .read_all(Request::List, &self.statements.list_namespaces, (), |row: NamespaceTuple| Ok(namespace(row)))
            .await?;
        Ok(rows.into_iter().flatten().collect())
    }

    pub(super) async fn namespace_cas(&self, expected: Option<u64>, row: NamespaceRow) -> Result<Cas<NamespaceRow>> {
        let (version, record) = (row.version as i64, &row.record);
        let decision = match expected {
            None => {
                let values = (&row.name, &row.id, version, record);
                self.cql.decide(&self.statements.create_namespace, values).await?
            }
            Some(expected) => {
                let values = (&row.id, version, record, &row.name, expected as i64);
                self.cql.decide(&self.statements.update_namespace, values).await?
            }
        };
        match decision {
            Decision::Applied => Ok(Cas::Applied),
            Decision::Rejected(None) => Ok(Cas::Rejected(None)),
            // A refused creation gives the whole row, a refused update only what its condition named.
            Decision::Rejected(Some(columns)) if expected.is_none() => Ok(Cas::Rejected(Some(namespace_of(&columns)?))),
            Decision::Rejected(Some(_)) => Ok(Cas::Rejected(self.read_namespace(&row.name).await?)),
        }
    }

    pub(super) async fn member_put(&self, row: &MemberRow, ttl: Duration) -> Result<()> {
        let seconds = i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX);
        let (generation, beat) = (row.generation as i64, row.beat as i64);
        // Not null, which would be a tombstone.
        let session = MaybeUnset::from_option(row.session.map(|session| session.0));
        let values = (&row.node, &row.name, &row.address, generation, beat, session, seconds);
        self.cql.write(Request::Members, &self.statements.put_member, values).await
    }

    pub(super) async fn members(&self) -> Result<Vec<MemberRow>> {
        let rows =
            self.cql.read_all(Request::Members, &self.statements.list_members, (), |row: MemberTuple| Ok(member(row)));
        Ok(rows.await?.into_iter().flatten().collect())
    }

    pub(super) async fn member_delete(&self, node: &str) -> Result<()> {
        self.cql.write(Request::Members, &self.statements.delete_member, (node,)).await
    }

    async fn read_namespace(&self, name: &str) -> Result<Option<NamespaceRow>> {
        let rows = self.cql.read(Request::SerialRead, &self.statements.read_namespace, (name,)).await?;
        let row = rows.maybe_first_row::<NamespaceTuple>().map_err(|e| errors::corrupt("namespace row", e))?;
        Ok(row.and_then(namespace))
    }
}
