//! The stores that a command may run servers on, and the Cassandra that it needs for that.

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cassandra::{CQL_PORT, Cluster, CommitlogSync, UpOptions};
use crate::server::Store;

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// `perdure dev`
    #[default]
    Embedded,
    /// `perdure server` on a Cassandra of `cargo xtask cassandra`
    Cassandra,
}

/// A Cassandra for as long as a command runs, if one of its stores needs it.
pub struct CassandraBench {
    cluster: Option<Cluster>,
    is_ours: bool,
    nodes: u8,
}

impl CassandraBench {
    /// The name of the cluster says for what, and how large it is.
    /// `brief`: as [`UpOptions::brief`].
    pub fn up(stores: &[StoreKind], nodes: u8, purpose: &str, brief: bool) -> Result<Self> {
        if !stores.contains(&StoreKind::Cassandra) {
            return Ok(Self { cluster: None, is_ours: false, nodes });
        }
        let cluster = Cluster::named(&format!("{purpose}-{nodes}"))?;
        let is_ours = !cluster.exists()?;
        cluster.up(&UpOptions {
            nodes: Some(nodes),
            commitlog_sync: CommitlogSync::default(),
            secure: false,
            brief,
        })?;
        Ok(Self { cluster: Some(cluster), is_ours, nodes })
    }

    /// Takes it down, with its data. One that somebody else had up stays.
    pub fn down(self) -> Result<()> {
        match self.cluster {
            Some(cluster) if self.is_ours => cluster.down(),
            Some(_) | None => Ok(()),
        }
    }

    pub fn seeds(&self) -> Result<String> {
        self.cluster.as_ref().context("Cassandra is not up")?.seeds()
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// A new store of that kind; `purpose` tells the keyspaces of one command apart.
    pub fn store(&self, kind: StoreKind, purpose: &str) -> Result<Store> {
        match kind {
            StoreKind::Embedded => Ok(Store::Embedded),
            StoreKind::Cassandra => {
                let seeds = self.cluster.as_ref().context("Cassandra is not up")?.seeds()?;
                let keyspace = format!("{purpose}_{}", std::process::id());
                Ok(Store::Cassandra { seeds, keyspace, replication_factor: self.nodes })
            }
        }
    }

    /// The processes of its nodes; none if one of them has ended.
    pub fn pids(&self) -> Option<Vec<u32>> {
        let cluster = self.cluster.as_ref()?;
        (1..=self.nodes).map(|number| cluster.node(number).ok()?.pid()).collect()
    }

    /// Its seeds with their ports, and how many replicas its keyspaces should have.
    pub fn for_tests(&self) -> Result<Option<(String, u8)>> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        let seeds = cluster.seeds()?;
        let seeds: Vec<String> = seeds.split(',').map(|seed| format!("{seed}:{CQL_PORT}")).collect();
        Ok(Some((seeds.join(","), self.nodes)))
    }
}
