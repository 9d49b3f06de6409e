//! Brings the schema to the version of this program.

use std::time::Duration;

use scylla::{response::query_result::QueryRowsResult, statement::Statement};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    lease::{LEASE_SECONDS, Lease},
    text::{self, MIGRATIONS, STATE_TABLE, VERSION},
};
use crate::{
    StoreError,
    cassandra::{
        config::{CassandraConfig, ConnectError},
        cql::{Columns, Cql, Decision},
        errors,
        telemetry::Request,
    },
};

/// Between two looks at what another node does.
const PAUSE: Duration = Duration::from_millis(250);

/// Time for a schema change to be run and agreed on by all nodes.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may lag behind a schema that all agree on.
const NODE_LAG: Duration = Duration::from_secs(15);

/// After so long without progress something is wrong.
const PATIENCE: Duration = Duration::from_secs(4 * LEASE_SECONDS as u64);

/// Creates or migrates what is missing; returns when the schema has this program's version.
pub(in crate::cassandra) async fn ensure(cql: &Cql, config: &CassandraConfig, me: Uuid) -> Result<(), ConnectError> {
    let schema_error = |reason: String| ConnectError::Schema { keyspace: config.keyspace.clone(), reason };
    bootstrap(cql, config).await.map_err(|error| match error {
        StoreError::Corrupt(reason) => ConnectError::Unsafe { keyspace: config.keyspace.clone(), reason },
        error => schema_error(error.to_string()),
    })?;
    let state = patiently(|| State::prepare(cql)).await.map_err(|e| schema_error(e.to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    let mut delay = PAUSE;
    loop {
        match state.step(me).await {
            Ok(Progress::Done(found)) if found > VERSION => {
                return Err(ConnectError::NewerSchema { keyspace: config.keyspace.clone(), found, known: VERSION });
            }
            Ok(Progress::Done(_)) => return Ok(()),
            Ok(Progress::Changed) => {}
            Ok(Progress::Waiting) => tokio::time::sleep(PAUSE).await,
            Err(StoreError::ReadOnly(reason)) => return Err(schema_error(reason)),
            Err(error) => {
                tracing::warn!(%error, "the schema cannot be read or changed, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(5));
            }
        }
        if Instant::now() > deadline {
            return Err(schema_error("another node holds the lease and does not get on; see its log".into()));
        }
    }
}

/// A table that the system tables name already may take a node a moment to know.
pub(in crate::cassandra) async fn patiently<T, F>(mut prepare: impl FnMut() -> F) -> crate::Result<T>
where
    F: Future<Output = crate::Result<T>>,
{
    let deadline = Instant::now() + NODE_LAG;
    loop {
        match prepare().await {
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            settled => return settled,
        }
    }
}

/// Keyspace and `schema_state`, in a way that any number of nodes may run at once.
async fn bootstrap(cql: &Cql, config: &CassandraConfig) -> crate::Result<()> {
    let mut delay = PAUSE;
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    loop {
        match try_bootstrap(cql, config).await {
            Ok(()) => return Ok(()),
            Err(error @ (StoreError::ReadOnly(_) | StoreError::Corrupt(_))) => return Err(error),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => tracing::warn!(%error, "the keyspace is not there yet, trying again"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

async fn try_bootstrap(cql: &Cql, config: &CassandraConfig) -> crate::Result<()> {
    // Who may not create keyspaces may still use one that is there.
    let keyspaces =
        query(cql, "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?", &cql.keyspace);
    if keyspaces.await?.rows_num() == 0 {
        tracing::info!(
            keyspace = cql.keyspace,
            replication_factor = config.replication_factor,
            "creating the keyspace"
        );
        change(cql, &text::keyspace(config.local_datacenter.as_deref(), config.replication_factor)).await?;
    }
    // One read tells both: with two, another node could create its tables in between, and ours would look like a stranger's.
    let tables = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let tables = query(cql, tables, &cql.keyspace).await?;
    let tables = tables.rows::<(String,)>().map_err(|e| errors::corrupt("system tables", e))?;
    let names: Vec<String> = tables.filter_map(|row| row.ok().map(|(name,)| name)).collect();
    if !names.iter().any(|name| name == "schema_state") {
        refuse_others(&names)?;
        let id = table_id(&cql.keyspace, "schema_state");
        change(cql, &format!("{STATE_TABLE} AND ID = {id}")).await?;
    }
    agreement(cql).await
}

/// Some of our tables have names that others use, too: created "if not exists", they would seem to be there.
fn refuse_others(names: &[String]) -> crate::Result<()> {
    match whose(names) {
        None => Ok(()),
        Some(whose) => Err(StoreError::Corrupt(format!(
            "it holds {whose}, and nothing of ours. Choose another keyspace: nothing is read from there or changed"
        ))),
    }
}

/// Who made these tables, if it was somebody else.
fn whose(tables: &[String]) -> Option<String> {
    let has = |name: &str| tables.iter().any(|table| table == name);
    // Of a Temporal or Cadence server: each of its versions has these.
    if has("history_node") && has("history_tree") {
        return Some("the tables of a Temporal server, whose data this server does not read".into());
    }
    let same_name = super::tables().find(|table| has(table))?;
    Some(format!("a table {same_name} that another program has made"))
}

async fn agreement(cql: &Cql) -> crate::Result<()> {
    let agreed = cql.session.await_schema_agreement().await;
    agreed.map(drop).map_err(|e| StoreError::Unavailable(format!("the nodes do not agree on the schema: {e}")))
}

async fn query(cql: &Cql, text: &str, keyspace: &str) -> crate::Result<QueryRowsResult> {
    let answer = cql.session.query_unpaged(text, (keyspace,)).await.map_err(errors::plain)?;
    answer.into_rows_result().map_err(|e| errors::corrupt("system tables", e))
}

/// Runs a schema change; the driver waits until all nodes agree on the outcome.
async fn change(cql: &Cql, text: &str) -> crate::Result<()> {
    let mut statement = Statement::new(text.replace("{ks}", &format!("\"{}\"", cql.keyspace)));
    statement.set_request_timeout(Some(CHANGE_TIMEOUT));
    cql.session.query_unpaged(statement, ()).await.map(drop).map_err(|error| {
        tracing::debug!(text, %error, "a schema change failed");
        errors::plain(error)
    })
}

/// An id that everybody who creates this table gives it. Cassandra wants ids to be unique in the cluster.
fn table_id(origin: &str, table: &str) -> Uuid {
    let mut bytes = [0; 16];
    for (i, half) in bytes.chunks_mut(8).enumerate() {
        let text = format!("perdure/{i}/{origin}/{table}");
        // FNV-1a, spread by a multiplication: no more is needed than that ids differ.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        half.copy_from_slice(&hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    }
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

enum Progress {
    /// The schema is complete, of this version.
    Done(i32),
    Changed,
    Waiting,
}

struct State<'a> {
    cql: &'a Cql,
    read: scylla::statement::prepared::PreparedStatement,
    be_born: scylla::statement::prepared::PreparedStatement,
    first_version: scylla::statement::prepared::PreparedStatement,
    next_version: scylla::statement::prepared::PreparedStatement,
}

impl<'a> State<'a> {
    async fn prepare(cql: &'a Cql) -> crate::Result<Self> {
        Ok(Self {
            cql,
            read: cql.prepare_serial_read("SELECT name, holder, version FROM {ks}.schema_state WHERE name = ?").await?,
            be_born: cql
                .prepare_conditional("INSERT INTO {ks}.schema_state (name, holder) VALUES ('birth', ?) IF NOT EXISTS")
                .await?,
            first_version: cql
                .prepare_conditional(
                    "INSERT INTO {ks}.schema_state (name, version) VALUES ('version', ?) IF NOT EXISTS",
                )
                .await?,
            next_version: cql
                .prepare_conditional("UPDATE {ks}.schema_state SET version = ? WHERE name = 'version' IF version = ?")
                .await?,
        })
    }

    async fn version(&self) -> crate::Result<i32> {
        let rows = self.cql.read(Request::SerialRead, &self.read, ("version",)).await?;
        let row = rows.maybe_first_row::<(String, Option<Uuid>, Option<i32>)>();
        let row = row.map_err(|e| StoreError::Corrupt(format!("schema version: {e}")))?;
        Ok(row.and_then(|(_, _, version)| version).unwrap_or(0))
    }

    /// The id that table ids come from: ours if nobody was faster.
    async fn birth(&self, me: Uuid) -> crate::Result<Uuid> {
        match self.cql.decide(&self.be_born, (me,)).await? {
            Decision::Applied => Ok(me),
            Decision::Rejected(row) => row.as_ref().map_or(Ok(me), |row: &Columns| row.uuid("holder")),
        }
    }

    async fn step(&self, me: Uuid) -> crate::Result<Progress> {
        let version = self.version().await?;
        if version >= VERSION {
            return Ok(Progress::Done(version));
        }
        let lease = Lease::new(self.cql, me).await?;
        if !lease.take().await? {
            return Ok(Progress::Waiting);
        }
        // What was true before the lease was ours need not be.
        let result = self.migrate(&lease, me).await;
        lease.release().await;
        result
    }

    async fn migrate(&self, lease: &Lease<'_>, me: Uuid) -> crate::Result<Progress> {
        let version = self.version().await?;
        let Some(migration) = MIGRATIONS.iter().find(|migration| migration.version == version + 1) else {
            return Ok(Progress::Changed);
        };
        tracing::info!(keyspace = self.cql.keyspace, version = migration.version, "changing the schema");
        let birth = self.birth(me).await?;
        for step in migration.statements {
            if !lease.renew().await? {
                return Ok(Progress::Waiting);
            }
            let text::Step::Table { name, .. } = step;
            let id = table_id(&birth.to_string(), name);
            change(self.cql, &text::statement(step, Some(id))).await?;
        }
        agreement(self.cql).await?;
        let new = migration.version;
        // Rejected or unknown: the next look tells.
        let _ = match version {
            0 => self.cql.decide(&self.first_version, (new,)).await?,
            _ => self.cql.decide(&self.next_version, (new, version)).await?,
        };
        Ok(Progress::Changed)
    }
}

#[cfg(test)]
mod tests {
    use super::refuse_others;

    #[test]
    fn a_keyspace_with_strange_tables_is_refused_by_their_owners_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let refused = |tables: &[&str]| refuse_others(&names(tables)).map_err(|error| error.to_string()).err();
        assert!(
            refused(&["history_node", "history_tree", "tasks"]).is_some_and(|why| why.contains("a Temporal server"))
        );
        assert!(refused(&["history"]).is_some_and(|why| why.contains("a table history")));
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&["somebodys_own"]), None);
    }
}
