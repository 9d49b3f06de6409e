//! The right to change the schema: one node at a time, for a while.
//!
//! The lease is an LWT row with a TTL, renewed before each statement, so that a holder that died is succeeded. It keeps the
//! peace and is not what makes changes safe: see the module above.

use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use crate::{
    Result, StoreError,
    cassandra::cql::{Cql, Decision},
};

/// Seconds. Longer than a statement with its agreement should take; waiters look more often.
pub(super) const LEASE_SECONDS: i32 = 60;

pub(super) struct Lease<'a> {
    cql: &'a Cql,
    me: Uuid,
    take: PreparedStatement,
    renew: PreparedStatement,
    release: PreparedStatement,
}

impl<'a> Lease<'a> {
    pub async fn new(cql: &'a Cql, me: Uuid) -> Result<Self> {
        let take = "INSERT INTO {ks}.schema_state (name, holder) VALUES ('lease', ?) IF NOT EXISTS USING TTL ?";
        let renew = "UPDATE {ks}.schema_state USING TTL ? SET holder = ? WHERE name = 'lease' IF holder = ?";
        let release = "DELETE FROM {ks}.schema_state WHERE name = 'lease' IF holder = ?";
        Ok(Self {
            cql,
            me,
            take: cql.prepare_conditional(take).await?,
            renew: cql.prepare_conditional(renew).await?,
            release: cql.prepare_conditional(release).await?,
        })
    }

    /// True: ours now. An unknown outcome is settled by asking again (G3): a row that names us is ours.
    pub async fn take(&self) -> Result<bool> {
        match self.cql.decide(&self.take, (self.me, LEASE_SECONDS)).await {
            Ok(Decision::Applied) => Ok(true),
            Ok(Decision::Rejected(row)) => match row {
                Some(row) => Ok(row.uuid("holder").is_ok_and(|holder| holder == self.me) && self.renew().await?),
                None => Ok(false),
            },
            Err(StoreError::Indeterminate(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// False: it has expired, and may be another's.
    pub async fn renew(&self) -> Result<bool> {
        match self.cql.decide(&self.renew, (LEASE_SECONDS, self.me, self.me)).await {
            Ok(Decision::Applied) => Ok(true),
            Ok(Decision::Rejected(_)) | Err(StoreError::Indeterminate(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// If this fails, it expires.
    pub async fn release(&self) {
        if let Err(error) = self.cql.decide(&self.release, (self.me,)).await {
            tracing::debug!(%error, "the schema lease will expire by itself");
        }
    }
}
