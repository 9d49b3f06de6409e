//! One conditional write an update, all in one partition: the shard's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use perdure_persistence::cassandra::CassandraConfig;
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    statement::{Consistency, SerialConsistency, Statement, prepared::PreparedStatement},
};

use tokio::sync::Semaphore;

use super::Path;

/// More than are ever in flight.
const WORKERS: usize = 4096;

pub struct Lwt {
    session: Session,
    update: PreparedStatement,
    create: PreparedStatement,
    versions: Vec<AtomicI64>,
    at_once: Semaphore,
    statements: AtomicU64,
}

impl Lwt {
    pub async fn start(config: &CassandraConfig, at_once: usize) -> Result<Self> {
        let seeds = config.seeds.iter().map(|seed| match seed.contains(':') {
            true => seed.clone(),
            false => format!("{seed}:{}", config.port),
        });
        let session = SessionBuilder::new().known_nodes(seeds).build().await.context("cannot connect")?;
        let table = format!("\"{}\".executions_by_shard", config.keyspace);
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table} (shard_id int, workflow_id int, version bigint, state blob, PRIMARY KEY \
             (shard_id, workflow_id)) WITH compaction = {{'class': 'LeveledCompactionStrategy'}}"
        );
        session.query_unpaged(create, ()).await?;
        let prepare = async |text: String| {
            let mut statement = Statement::new(text);
            // As the statements of the store are: Paxos at SERIAL, its commit at QUORUM.
            statement.set_consistency(Consistency::Quorum);
            statement.set_serial_consistency(Some(SerialConsistency::Serial));
            session.prepare(statement).await
        };
        let update =
            format!("UPDATE {table} SET version = ?, state = ? WHERE shard_id = 1 AND workflow_id = ? IF version = ?");
        let create =
            format!("INSERT INTO {table} (shard_id, workflow_id, version, state) VALUES (1, ?, ?, ?) IF NOT EXISTS");
        let (update, create) = (prepare(update).await?, prepare(create).await?);
        let versions = (0..WORKERS).map(|_| AtomicI64::new(0)).collect();
        let at_once = Semaphore::new(at_once.max(1));
        Ok(Self { session, update, create, versions, at_once, statements: AtomicU64::new(0) })
    }

    pub async fn drop_keyspace(&self, keyspace: &str) -> Result<()> {
        self.session.query_unpaged(format!("DROP KEYSPACE \"{keyspace}\""), ()).await?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Path for Lwt {
    fn name(&self) -> &'static str {
        "LWT each"
    }

    async fn update(&self, worker: usize, update: Bytes) -> Result<()> {
        let _turn = self.at_once.acquire().await?;
        let version = &self.versions[worker];
        let seen = version.load(Ordering::Relaxed);
        self.statements.fetch_add(1, Ordering::Relaxed);
        let id = worker as i32;
        let answer = match seen {
            0 => self.session.execute_unpaged(&self.create, (id, seen + 1, update)).await?,
            _ => self.session.execute_unpaged(&self.update, (seen + 1, update, id, seen)).await?,
        };
        let row: scylla::value::Row = answer.into_rows_result()?.first_row()?;
        match row.columns.first().and_then(|applied| applied.as_ref()?.as_boolean()) {
            Some(true) => {
                version.store(seen + 1, Ordering::Relaxed);
                Ok(())
            }
            // An earlier attempt of unknown outcome was decided after all.
            Some(false) => {
                version.store(seen + 1, Ordering::Relaxed);
                bail!("an earlier update of unknown outcome had been decided")
            }
            None => bail!("unknown form of answer"),
        }
    }

    fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }
}
